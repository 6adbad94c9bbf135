"""ELECTRA against transformers; embeddings that are narrower than the layers are refused."""

import json

import pytest
from transformers import ElectraConfig, ElectraModel

from family import BERT_SIZES, assert_agrees, byte_tokenizer, write_folder
from minifuse import SentenceTransformer


def test_electra(tmp_path):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[CLS]", "[SEP]"])
    config = ElectraConfig(
        vocab_size=tokenizer.get_vocab_size(),
        embedding_size=32,
        max_position_embeddings=40,
        **BERT_SIZES,
    )
    reference = ElectraModel(config)
    folder = write_folder(tmp_path / "model", reference, tokenizer)
    assert_agrees(folder, reference)

    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"embedding_size": 16}))
    with pytest.raises(ValueError, match="embedding_size is 16, wanted hidden_size=32"):
        SentenceTransformer(folder)
