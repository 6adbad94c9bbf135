"""GTE's own encoder against transformers: rotary positions, a gate, both forms of its names."""

import numpy as np
import pytest
import torch
import transformers

from family import TEXTS, assert_agrees, byte_tokenizer, change_config, write_folder
from minifuse import SentenceTransformer


@pytest.fixture(params=[0, 1])
def folder(request, tmp_path):
    tokenizer = byte_tokenizer("<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>"])
    config = transformers.GteConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=150,
        type_vocab_size=request.param,
    )
    reference = transformers.GteModel(config)
    return write_folder(tmp_path / "model", reference, tokenizer), reference


def test_gte(folder):
    assert_agrees(*folder, can_be_trained=False)


def test_scaled_positions(folder):
    """The first configurations' scaling: a larger base and slower frequencies."""
    model, reference = folder
    change_config(
        model,
        model_type="new",
        rope_parameters="gone",
        rope_theta=20_000.0,
        rope_scaling={"type": "ntk", "factor": 8.0},
        pack_qkv=True,
    )
    head_dim = 12
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    reference.rotary_emb.inv_freq = 1 / (20_000.0 * 8) ** exponents / 8 ** (2 / head_dim)
    assert_agrees(model, reference, can_be_trained=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logn_attention_scale": True}, "logn_attention_scale is True, wanted False"),
        ({"rope_scaling": {"type": "yarn"}}, "type is 'yarn', wanted 'ntk'"),
        ({"rope_scaling": {"type": "ntk", "factor": 0.5}}, "factor of rope_scaling is 0.5"),
        ({"rope_scaling": 8}, "rope_scaling is 8, wanted an object"),
        ({"position_embedding_type": "absolute"}, "wanted 'rope'"),
    ],
)
def test_what_is_not_computed_is_refused(folder, changes, message):
    change_config(folder[0], **changes)
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(folder[0])


def test_a_text_alone_is_the_same_in_a_long_batch(folder):
    model = SentenceTransformer(folder[0])
    vectors = model.encode(TEXTS * 7, batch_size=3)
    np.testing.assert_array_equal(vectors[:5], model.encode(TEXTS))
