"""MPNet against transformers: scores have a bias by distance, positions begin at two."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from family import BERT_SIZES, assert_agrees, byte_tokenizer, write_folder
from minifuse import SentenceTransformer
from minifuse.models.architectures.mpnet import _bucket
from minifuse.native import core


@pytest.fixture
def folder(tmp_path):
    """A random MPNet of 300 positions: distances of every bucket."""
    tokenizer = byte_tokenizer("<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>"])
    config = transformers.MPNetConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=302,
        layer_norm_eps=1e-5,
        **BERT_SIZES,
    )
    reference = transformers.MPNetModel(config)
    with torch.no_grad():  # large enough for a wrong bias to show
        reference.encoder.relative_attention_bias.weight.normal_()
    return write_folder(tmp_path / "model", reference, tokenizer), reference


def test_mpnet(folder):
    assert_agrees(*folder, can_be_trained=False)


def test_buckets():
    distances = torch.arange(-700, 701)
    encoder = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    theirs = encoder.relative_position_bucket(distances)
    assert [_bucket(int(distance)) for distance in distances] == theirs.tolist()


def test_the_same_bits_on_every_instruction_set(folder):
    texts = ["a " * n for n in (1, 3, 15, 16, 17, 70)]
    before = core.isa()
    expected = SentenceTransformer(folder[0]).encode(texts)
    assert len(core.supported_isas()) > 1 or before == "scalar"
    try:
        for isa in core.supported_isas():
            core.select_isa(isa)
            np.testing.assert_array_equal(SentenceTransformer(folder[0]).encode(texts), expected)
    finally:
        core.select_isa(before)


def test_biases_of_another_shape_are_named(folder):
    path = folder[0] / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "encoder.relative_attention_bias.weight"
    tensors[name] = tensors[name][:7].contiguous()
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name}' has shape \[7, 4\]: wanted \[32, 4\]"):
        SentenceTransformer(folder[0])


def test_other_buckets_are_refused(folder):
    path = folder[0] / "config.json"
    config = json.loads(path.read_text()) | {"relative_attention_num_buckets": 64}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="relative_attention_num_buckets is 64, wanted 32"):
        SentenceTransformer(folder[0])
