"""RoBERTa, XLM-RoBERTa and CamemBERT against transformers: positions begin at two."""

import numpy as np
import pytest
import sentence_transformers
import transformers

from family import BERT_SIZES, assert_agrees, byte_tokenizer, write_folder
from minifuse import SentenceTransformer


def write(tmp_path, name):
    tokenizer = byte_tokenizer("<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>"])
    config = getattr(transformers, f"{name}Config")(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=42,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **BERT_SIZES,
    )
    reference = getattr(transformers, f"{name}Model")(config)
    return write_folder(tmp_path / "model", reference, tokenizer), reference


@pytest.mark.parametrize("name", ["Roberta", "XLMRoberta", "Camembert"])
def test_roberta(tmp_path, name):
    assert_agrees(*write(tmp_path, name))


def test_padding_in_the_middle_of_a_text(tmp_path):
    """It has a position of its own, and the tokens behind it are counted without it."""
    folder, _ = write(tmp_path, "Roberta")
    texts = ["use <pad> here", "<pad>", "a<pad><pad>b", "<pad>a" * 18, "a b"]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    for num_threads in (1, 2, 4):
        ours = SentenceTransformer(folder, num_threads=num_threads)
        np.testing.assert_allclose(ours.encode(texts), theirs, atol=5e-6)
        for text, vector in zip(texts, ours.encode(texts), strict=True):
            np.testing.assert_array_equal(ours.encode(text), vector)
