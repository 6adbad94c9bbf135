"""RoBERTa, XLM-RoBERTa and CamemBERT against transformers: positions begin at two."""

import pytest
import transformers

from family import BERT_SIZES, assert_agrees, byte_tokenizer, write_folder


@pytest.mark.parametrize("name", ["Roberta", "XLMRoberta", "Camembert"])
def test_roberta(tmp_path, name):
    tokenizer = byte_tokenizer("<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>"])
    config = getattr(transformers, f"{name}Config")(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=42,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **BERT_SIZES,
    )
    reference = getattr(transformers, f"{name}Model")(config)
    folder = write_folder(tmp_path / "model", reference, tokenizer)
    assert_agrees(folder, reference)
