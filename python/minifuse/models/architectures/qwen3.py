"""Qwen3 (Yang et al. 2025), of which the Qwen3-Embedding models are: a decoder without its last
matrix, whose queries share keys and whose last token stands for a text.
"""

from __future__ import annotations

from minifuse.models.architectures import Architecture, Head, without_biases
from minifuse.models.description import Config, ModelDescription


def _describe(config: Config) -> ModelDescription:
    config.want("attention_bias", False)
    config.want("use_sliding_window", False)
    config.want("use_bidirectional_attention", False)  # the key is is_causal
    num_heads = config.integer("num_attention_heads")
    return ModelDescription(
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        hidden_size=config.integer("hidden_size"),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        intermediate_size=config.integer("intermediate_size"),
        layer_norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        type_vocab_size=0,
        has_position_embeddings=False,
        rotary_theta=config.rotary_theta("rope_theta", 10_000.0),
        has_gate=True,
        norms="pre",
        has_rms_norms=True,
        has_embedding_norm=False,
        num_key_value_heads=config.integer("num_key_value_heads", num_heads),
        head_dim=config.integer("head_dim", 128),
        has_head_norms=True,
        is_causal=bool(config.values.get("is_causal", True)),
    )


ARCHITECTURE = Architecture(
    model_types=("qwen3",),
    describe=_describe,
    prefixes=("model.",),
    head=Head(None, "score", pooling="lasttoken"),
    language_matrix="lm_head.weight",
    tensors={
        **without_biases(
            "query", "key", "value", "attention_output", "ffn_gate", "ffn_input", "ffn_output"
        ),
        "embeddings.word": "embed_tokens.weight",
        "final_norm": "norm",
        "layers.{}.attention_norm": "layers.{}.input_layernorm",
        "layers.{}.query": "layers.{}.self_attn.q_proj",
        "layers.{}.key": "layers.{}.self_attn.k_proj",
        "layers.{}.value": "layers.{}.self_attn.v_proj",
        "layers.{}.query_norm": "layers.{}.self_attn.q_norm",
        "layers.{}.key_norm": "layers.{}.self_attn.k_norm",
        "layers.{}.attention_output": "layers.{}.self_attn.o_proj",
        "layers.{}.ffn_norm": "layers.{}.post_attention_layernorm",
        "layers.{}.ffn_gate": "layers.{}.mlp.gate_proj",
        "layers.{}.ffn_input": "layers.{}.mlp.up_proj",
        "layers.{}.ffn_output": "layers.{}.mlp.down_proj",
    },
)
