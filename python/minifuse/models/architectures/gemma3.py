"""Gemma 3's text model (Gemma Team 2025), EmbeddingGemma's: norms before and behind attention and
feed-forward, and five of six layers that attend to a window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import Architecture, Derived, Head, without_biases
from minifuse.models.description import Config, ModelDescription

_KINDS = {"full_attention": False, "sliding_attention": True}


def _describe(config: Config) -> ModelDescription:
    config.want("attention_bias", False)
    config.want("attn_logit_softcapping", None)
    config.want("is_causal", True)  # the key is use_bidirectional_attention
    num_layers = config.integer("num_hidden_layers")
    if num_layers > 1000:
        raise ValueError(f"{config.path}: num_hidden_layers is {num_layers}, wanted 1..1000")
    is_causal = not config.values.get("use_bidirectional_attention")
    scalar = config.number("query_pre_attn_scalar", 256)
    if scalar <= 0:
        raise ValueError(f"{config.path}: query_pre_attn_scalar is {scalar}, wanted a number > 0")
    return ModelDescription(
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        hidden_size=config.integer("hidden_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=config.integer("num_attention_heads"),
        intermediate_size=config.integer("intermediate_size"),
        layer_norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        type_vocab_size=0,
        has_position_embeddings=False,
        rotary_theta=config.rotary_theta("rope_theta", 1_000_000.0, "full_attention"),
        local_rotary_theta=config.rotary_theta(
            "rope_local_base_freq", 10_000.0, "sliding_attention"
        ),
        windows=_windows(config, num_layers, is_causal),
        has_gate=True,
        norms="sandwich",
        has_rms_norms=True,
        has_embedding_norm=False,
        num_key_value_heads=config.integer("num_key_value_heads"),
        head_dim=config.integer("head_dim", 256),
        has_head_norms=True,
        attention_scale=scalar**-0.5,
        is_causal=is_causal,
    )


def _windows(config: Config, num_layers: int, is_causal: bool) -> tuple[int, ...]:
    """Return to how many tokens before it a layer's token attends, and after it; 0: to all."""
    size = config.integer("sliding_window", 4096)
    window = size - 1 if is_causal else size // 2
    pattern = config.integer("sliding_window_pattern", 6)
    if pattern == 0:
        raise ValueError(f"{config.path}: sliding_window_pattern is 0, wanted >= 1")
    if config.values.get("layer_types") is None:
        are_local = [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    else:
        are_local = [_KINDS[kind] for kind in config.names("layer_types", _KINDS)]
    if any(are_local) and window < 1:
        raise ValueError(f"{config.path}: sliding_window is {size}, wanted a window")
    return tuple(window if is_local else 0 for is_local in are_local)


def _scaled(
    embeddings: npt.NDArray[np.float32], description: ModelDescription
) -> npt.NDArray[np.float32]:
    return np.asarray(embeddings * np.float32(description.hidden_size**0.5))


def _one_more(
    gamma: npt.NDArray[np.float32], description: ModelDescription
) -> npt.NDArray[np.float32]:
    return np.asarray(gamma + np.float32(1))


ARCHITECTURE = Architecture(
    model_types=("gemma3_text",),
    describe=_describe,
    prefixes=("model.",),
    head=Head(None, "score", pooling="lasttoken"),
    language_matrix="lm_head.weight",
    tensors={
        **without_biases(
            "query", "key", "value", "attention_output", "ffn_gate", "ffn_input", "ffn_output"
        ),
        "embeddings.word": Derived("embed_tokens.weight", _scaled),
        "final_norm": Derived("norm", _one_more),
        "layers.{}.attention_norm": Derived("layers.{}.input_layernorm", _one_more),
        "layers.{}.query": "layers.{}.self_attn.q_proj",
        "layers.{}.key": "layers.{}.self_attn.k_proj",
        "layers.{}.value": "layers.{}.self_attn.v_proj",
        "layers.{}.query_norm": Derived("layers.{}.self_attn.q_norm", _one_more),
        "layers.{}.key_norm": Derived("layers.{}.self_attn.k_norm", _one_more),
        "layers.{}.attention_output": "layers.{}.self_attn.o_proj",
        "layers.{}.attention_output_norm": Derived("layers.{}.post_attention_layernorm", _one_more),
        "layers.{}.ffn_norm": Derived("layers.{}.pre_feedforward_layernorm", _one_more),
        "layers.{}.ffn_gate": "layers.{}.mlp.gate_proj",
        "layers.{}.ffn_input": "layers.{}.mlp.up_proj",
        "layers.{}.ffn_output": "layers.{}.mlp.down_proj",
        "layers.{}.ffn_output_norm": Derived("layers.{}.post_feedforward_layernorm", _one_more),
    },
)
