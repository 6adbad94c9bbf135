"""ModernBERT (Warner et al. 2024): norms that go first, rotary positions, a gate in the
feed-forward, no biases, and two of three layers that attend to a window.
"""

from __future__ import annotations

from minifuse.models.architectures import (
    Architecture,
    Head,
    MaskedLanguage,
    section,
    without_biases,
)
from minifuse.models.description import Config, ModelDescription

# Settings that a configuration can have, and the values of the models that are used.
_SETTINGS = {
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,
    "classifier_activation": "gelu",
}
_KINDS = {"full_attention": False, "sliding_attention": True}


def _windows(config: Config, num_layers: int) -> tuple[int, ...]:
    """Return to how many tokens on either side each layer's tokens attend; 0: to all."""
    window = config.integer("local_attention", 128) // 2
    if config.values.get("layer_types") is None:
        step = config.integer("global_attn_every_n_layers", 3)
        if step == 0:
            raise ValueError(f"{config.path}: global_attn_every_n_layers is 0, wanted >= 1")
        are_local = [layer % step != 0 for layer in range(num_layers)]
    else:
        are_local = [_KINDS[kind] for kind in config.names("layer_types", _KINDS)]
    if any(are_local) and window == 0:
        raise ValueError(f"{config.path}: local_attention is below 2, wanted a window")
    return tuple(window if is_local else 0 for is_local in are_local)


def _describe(config: Config) -> ModelDescription:
    for key, wanted in _SETTINGS.items():
        config.want(key, wanted)
    num_layers = config.integer("num_hidden_layers", 22)
    if num_layers > 1000:
        raise ValueError(f"{config.path}: num_hidden_layers is {num_layers}, wanted 1..1000")
    return ModelDescription(
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings", 8192),
        hidden_size=config.integer("hidden_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=config.integer("num_attention_heads"),
        intermediate_size=config.integer("intermediate_size"),
        layer_norm_eps=config.number("norm_eps", 1e-5),
        activation=config.activation("hidden_activation"),
        type_vocab_size=0,
        has_position_embeddings=False,
        rotary_theta=config.rotary_theta("global_rope_theta", 160_000.0, "full_attention"),
        local_rotary_theta=config.rotary_theta("local_rope_theta", 10_000.0, "sliding_attention"),
        windows=_windows(config, num_layers),
        norms="pre",
        has_gate=True,
    )


ARCHITECTURE = Architecture(
    model_types=("modernbert",),
    describe=_describe,
    prefixes=("model.",),
    head=Head("head.dense", activation="gelu", norm="head.norm", pooling_key="classifier_pooling"),
    masked_language=MaskedLanguage("head.dense", "head.norm", "decoder", activation="gelu"),
    tensors={
        **without_biases(
            "query",
            "key",
            "value",
            "attention_output",
            "ffn_gate",
            "ffn_input",
            "ffn_output",
            "attention_norm",
            "ffn_norm",
        ),
        "embeddings.word": "embeddings.tok_embeddings.weight",
        "embeddings.norm.weight": "embeddings.norm.weight",
        "embeddings.norm.bias": None,
        "final_norm.weight": "final_norm.weight",
        "final_norm.bias": None,
        "layers.{}.query.weight": section("layers.{}.attn.Wqkv.weight", 0, 3),
        "layers.{}.key.weight": section("layers.{}.attn.Wqkv.weight", 1, 3),
        "layers.{}.value.weight": section("layers.{}.attn.Wqkv.weight", 2, 3),
        "layers.{}.attention_output.weight": "layers.{}.attn.Wo.weight",
        "layers.{}.attention_norm.weight": "layers.{}.attn_norm.weight",
        "layers.{}.ffn_gate.weight": section("layers.{}.mlp.Wi.weight", 0, 2),
        "layers.{}.ffn_input.weight": section("layers.{}.mlp.Wi.weight", 1, 2),
        "layers.{}.ffn_output.weight": "layers.{}.mlp.Wo.weight",
        "layers.{}.ffn_norm.weight": "layers.{}.mlp_norm.weight",
    },
)
