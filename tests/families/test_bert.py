"""BERT against transformers."""

import pytest
from transformers import BertConfig, BertModel

from family import BERT_SIZES, assert_agrees, byte_tokenizer, unigram_tokenizer, write_folder

TOKENIZERS = {
    "bytes": lambda: byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[CLS]", "[SEP]"]),
    # paraphrase-multilingual-MiniLM-L12-v2 and multilingual-e5-small: XLM-RoBERTa's on BERT's body
    "unigram": unigram_tokenizer,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bert(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=40,
        **BERT_SIZES,
    )
    reference = BertModel(config)
    folder = write_folder(tmp_path / "model", reference, tokenizer)
    assert_agrees(folder, reference)
