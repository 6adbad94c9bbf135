"""Models drawn at random for the fuzzer: descriptions with any switches, weights for them, and
small configurations of every family.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from minifuse.models.description import ModelDescription
from minifuse.native import core

__all__ = ["SMALL_CONFIGS", "random_description", "random_weights", "set_weights"]

_SIZES = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
_ROTARY = {"rope_theta": 1e4, "rope_type": "default"}
_BOTH = {"rope_parameters": {"full_attention": _ROTARY, "sliding_attention": _ROTARY}}
_KINDS = {"layer_types": ["full_attention", "sliding_attention"]}
_DECODER = _SIZES | {"num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-6}

# A configuration of each family, in each form that it has.
SMALL_CONFIGS: list[dict[str, Any]] = [
    _SIZES | {"model_type": "roberta", "type_vocab_size": 1},
    _SIZES | {"model_type": "electra", "embedding_size": 8},
    _SIZES | {"model_type": "mpnet", "relative_attention_num_buckets": 32},
    _SIZES | {"model_type": "nomic_bert", "rope_parameters": _ROTARY},
    {
        "model_type": "nomic_bert", "n_embd": 8, "n_head": 2, "n_inner": 8, "n_layer": 1,
        "n_positions": 40, "vocab_size": 30, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
    },
    _SIZES | {"model_type": "gte", "rope_parameters": _ROTARY, "type_vocab_size": 0},
    _SIZES | {"model_type": "new", "rope_theta": 1e4, "rope_scaling": {"type": "ntk", "factor": 2}},
    _SIZES | {
        "model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": "geglu",
    },
    _SIZES | {"model_type": "modernbert", "local_attention": 8, **_BOTH, **_KINDS},
    _SIZES | {"model_type": "modernbert", "local_attention": 8, "global_attn_every_n_layers": 2},
    _DECODER | {"model_type": "qwen3", "rope_parameters": _ROTARY},
    _DECODER | {"model_type": "gemma3_text", "sliding_window": 8, **_BOTH, **_KINDS},
]  # fmt: skip


def random_description(draw: random.Random) -> ModelDescription:
    """A small model with any of the switches that go together."""
    number = draw.randint

    def either() -> bool:
        return number(0, 1) == 1

    groups, group = number(1, 3), number(1, 2)
    heads, head_dim, layers = groups * group, 2 * number(1, 20), number(0, 2)
    norms = draw.choice(("post", "post", "pre", "sandwich")) if layers else "post"
    is_rms = norms != "post" and either()
    is_rotary = either()
    return ModelDescription(
        vocab_size=20,
        max_position_embeddings=300,
        hidden_size=number(heads, 160),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        intermediate_size=number(1, 400),
        layer_norm_eps=1e-12,
        activation=draw.choice(("gelu", "gelu_new", "relu", "silu", "tanh")),
        type_vocab_size=number(0, 2),
        has_position_embeddings=either(),
        has_relative_bias=either(),
        rotary_theta=1e4 if is_rotary else 0.0,
        local_rotary_theta=10.0 if is_rotary and either() else 0.0,
        rotary_scale=draw.choice((1.0, 1.7)),
        windows=tuple(draw.choice((0, 1, 7, 40)) for _ in range(layers)) if either() else (),
        norms=norms,
        has_rms_norms=is_rms,
        has_embedding_norm=norms == "post" or either(),
        has_head_norms=either(),
        attention_scale=draw.choice((0.0, 0.2)),
        is_causal=either(),
        has_gate=either(),
    )


def random_weights(encoder: Any, dtype: str, rng: np.random.Generator) -> dict[str, Any]:
    """Weights of an encoder by its slots; in int8 a matrix's are codes and scales."""
    weights: dict[str, Any] = {}
    for name, shape in encoder.weight_slots().items():
        values = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        if dtype == "int8" and name.startswith("layers.") and len(shape) == 2:
            groups = -(-shape[1] // core.INT8_GROUP)
            moments = np.zeros((groups, core.INT8_GROUP, core.INT8_GROUP), np.float32)
            weights[name] = core.quantize_linear(values, np.ones(shape[1], np.float32), moments)
        else:
            weights[name] = values
    return weights


def set_weights(encoder: Any, weights: dict[str, Any]) -> None:
    """Put weights into an encoder and finish it."""
    for name, value in weights.items():
        if isinstance(value, tuple):
            encoder.set_quantized_weight(name, *value)
        else:
            encoder.set_weight(name, value)
    encoder.finish_weights()
