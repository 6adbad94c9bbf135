"""Every switch of a model, and all together, against the equations in float64: random encoders of odd
sizes, on each instruction set, alone and in batches, by one thread and by several.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minifuse.bench.reference import Float64, relative_error
from minifuse.models.description import ModelDescription
from minifuse.models.layer import hidden_states
from minifuse.models.weights import new_encoder
from minifuse.native import core

ROTARY = {"rotary_theta": 1000.0, "has_position_embeddings": False}
RMS = {"has_rms_norms": True, "has_embedding_norm": False, "type_vocab_size": 0}
SWITCHES = {
    "plain": {},
    "relative bias": {"has_relative_bias": True},
    "rotary": ROTARY,
    "gate": {"has_gate": True, "activation": "silu"},
    "windows": {"windows": (5, 0, 40)},
    "norms that stand first": {"norms": "pre"},
    "relative bias in windows": {"has_relative_bias": True, "windows": (0, 70, 1)},
    "several queries a key": {"num_key_value_heads": 2, "head_dim": 20},
    "one key for all, causal": {"num_key_value_heads": 1, "is_causal": True},
    "all of Qwen3's": {
        **ROTARY,
        **RMS,
        "norms": "pre",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "has_head_norms": True,
        "is_causal": True,
        "has_gate": True,
    },
    "all of Gemma3's": {
        **ROTARY,
        **RMS,
        "local_rotary_theta": 50.0,
        "windows": (6, 6, 0),
        "norms": "sandwich",
        "num_key_value_heads": 1,
        "head_dim": 18,
        "has_head_norms": True,
        "attention_scale": 0.3,
        "activation": "gelu_new",
        "has_gate": True,
    },
    "all of ModernBERT's": {
        **ROTARY,
        "local_rotary_theta": 50.0,
        "windows": (0, 7, 20),
        "norms": "pre",
        "has_gate": True,
    },
}
LENGTHS = (1, 2, 15, 16, 17, 33, 70)


def describe(switches: dict, head_dim: int) -> ModelDescription:
    sizes = {"vocab_size": 50, "max_position_embeddings": 80, "num_hidden_layers": 3}
    sizes |= {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "intermediate_size": 70}
    settings = {"layer_norm_eps": 1e-6, "activation": "gelu"}
    return ModelDescription(**sizes | settings | switches)


def random_encoder(description: ModelDescription, dtype: str = "float32"):
    """An encoder and its weights, slot by slot."""
    rng = np.random.default_rng(7)
    encoder, weights = new_encoder(description, dtype), {}
    for slot, shape in sorted(encoder.weight_slots().items()):
        array = rng.normal(size=shape).astype(np.float32)
        if "norm.weight" in slot:
            array = 1 + array / 4
        elif slot.startswith("layers.") and slot.endswith(".weight"):
            array /= np.float32(shape[-1] ** 0.5)
        weights[slot] = array
        encoder.set_weight(slot, array)
    encoder.finish_weights()
    return encoder, weights


def random_batch() -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(8).integers(0, 50, sum(LENGTHS)).astype(np.int32)
    return ids, np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)


@pytest.mark.parametrize("head_dim", [12, 32, 70])
@pytest.mark.parametrize("name", SWITCHES)
def test_equations(isa, name, head_dim):
    description = describe(SWITCHES[name], head_dim)
    encoder, weights = random_encoder(description)
    ids, cu_seqlens = random_batch()
    states = encoder.hidden_states(ids, cu_seqlens, num_threads=1)
    exact = [
        hidden_states(weights, ids[begin:end], description, Float64)
        for begin, end in itertools.pairwise(cu_seqlens)
    ]
    for layer, ours in enumerate(states):
        truth = np.concatenate([one[layer] for one in exact])
        assert relative_error(ours, truth) <= 1e-6 * (layer + 1), layer
    last = encoder.token_embeddings(ids, cu_seqlens, batch_size=32, num_threads=2)
    np.testing.assert_array_equal(last, states[-1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SWITCHES)
def test_the_same_bits(name, dtype):
    """Alone and in a batch, by a team of any size; in float32 on every instruction set, too."""
    description = describe(SWITCHES[name], 24)
    encoder, _ = random_encoder(description, dtype)
    ids, cu_seqlens = random_batch()
    how = {"poolings": ["mean", "cls"], "pool_from": 0, "batch_size": 32}
    expected = encoder.encode(ids, cu_seqlens, num_threads=1, **how)
    for place, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        alone = np.array([0, end - begin], np.int32)
        for num_threads in (1, 2, 3):
            one = encoder.encode(ids[begin:end], alone, num_threads=num_threads, **how)
            np.testing.assert_array_equal(one[0], expected[place])
    for num_threads in (2, 3, 4):
        again = encoder.encode(ids, cu_seqlens, num_threads=num_threads, **how)
        np.testing.assert_array_equal(again, expected)
    if dtype == "float32":
        before = core.isa()
        for isa_name in core.supported_isas():
            core.select_isa(isa_name)
            try:
                other, _ = random_encoder(description, dtype)
                again = other.encode(ids, cu_seqlens, num_threads=2, **how)
            finally:
                core.select_isa(before)
            np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(
    ("switches", "head_dim", "message"),
    [
        ({"rotary_theta": -1.0}, 8, "base of rotary positions is -1"),
        ({"rotary_theta": float("nan")}, 8, "base of rotary positions is nan"),
        ({"local_rotary_theta": 1.0}, 8, "in some layers only"),
        (ROTARY, 7, "turn pairs, and a head has 7 columns"),
        ({"num_key_value_heads": 3}, 8, "num_attention_heads=4 is not a multiple of"),
        ({"num_key_value_heads": 5}, 8, "num_key_value_heads=5, wanted 0"),
        ({"head_dim": 1000}, 8, "head_dim=1000, wanted"),
        ({"attention_scale": float("inf")}, 8, "scores are scaled by inf"),
        ({"has_rms_norms": True}, 8, "RMSNorm behind attention"),
        ({"norms": "both"}, 8, "norms is 'both', wanted one of post, pre, sandwich"),
        ({"windows": (1, 2)}, 8, "windows of 2 layers, wanted 3"),
        ({"windows": (1, 2, -1)}, 8, "window of attention=-1"),
    ],
)
def test_nonsense_is_refused(switches, head_dim, message):
    with pytest.raises(ValueError, match=message):
        new_encoder(describe(switches, head_dim), "float32")
