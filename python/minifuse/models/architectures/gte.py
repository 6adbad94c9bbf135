"""GTE's own encoder (Zhang et al. 2024): BERT with rotary positions and a gate in the feed-forward.
gte-multilingual, gte-base-en-v1.5 and Snowflake's arctic-embed-m-v2.0 are models of it.
"""

from __future__ import annotations

from minifuse.models.architectures import Architecture, Head, section, without_biases
from minifuse.models.description import Config, ModelDescription

# Settings that a configuration can have, and the values of the models that are used.
_SETTINGS = {
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
}


def _rotary(config: Config, head_dim: int) -> tuple[float, float]:
    """Return the base of rotary positions and what their frequencies are divided by.

    A longer context than the one of training is reached by a larger base and slower frequencies
    ("NTK-aware" scaling).
    """
    theta = config.rotary_theta("rope_theta", 160_000.0, scales=True)
    scaling = config.values.get("rope_scaling")
    if scaling is None:
        return theta, 1.0
    if not isinstance(scaling, dict):
        raise ValueError(f"{config.path}: rope_scaling is {scaling!r:.60}, wanted an object")
    inner = Config(config.path, {"type": scaling.get("rope_type"), **scaling})
    inner.want("type", "ntk")
    inner.want("mixed_b", None)
    factor = inner.number("factor", 1.0)
    if not 1 <= factor <= 1e6:
        raise ValueError(f"{config.path}: factor of rope_scaling is {factor}, wanted 1..1000000")
    return theta * factor, factor ** (2 / max(head_dim, 1))


def _describe(config: Config) -> ModelDescription:
    config.want_encoder()
    for key, wanted in _SETTINGS.items():
        config.want(key, wanted)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    theta, scale = _rotary(config, hidden // max(heads, 1))
    return ModelDescription(
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings", 8192),
        hidden_size=hidden,
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=config.integer("intermediate_size"),
        type_vocab_size=config.integer("type_vocab_size", 1),
        layer_norm_eps=config.number("layer_norm_eps", 1e-12),
        activation=config.activation("hidden_act"),
        has_position_embeddings=False,
        rotary_theta=theta,
        rotary_scale=scale,
        has_gate=True,
    )


ARCHITECTURE = Architecture(
    model_types=("gte", "new"),
    describe=_describe,
    prefixes=("new.", "gte."),
    head=Head("pooler.dense"),
    tensors={
        **without_biases("ffn_gate", "ffn_input"),
        "embeddings.word": "embeddings.word_embeddings.weight",
        "embeddings.token_type": "embeddings.token_type_embeddings.weight",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{}.query": section("encoder.layer.{}.attention.qkv_proj", 0, 3),
        "layers.{}.key": section("encoder.layer.{}.attention.qkv_proj", 1, 3),
        "layers.{}.value": section("encoder.layer.{}.attention.qkv_proj", 2, 3),
        "layers.{}.attention_output": "encoder.layer.{}.attention.o_proj",
        "layers.{}.attention_norm": "encoder.layer.{}.attn_ln",
        "layers.{}.ffn_gate.weight": section("encoder.layer.{}.mlp.up_gate_proj.weight", 1, 2),
        "layers.{}.ffn_input.weight": section("encoder.layer.{}.mlp.up_gate_proj.weight", 0, 2),
        "layers.{}.ffn_output": "encoder.layer.{}.mlp.down_proj",
        "layers.{}.ffn_norm": "encoder.layer.{}.mlp_ln",
    },
)
