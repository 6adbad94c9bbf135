"""NomicBERT (Nussbaum et al. 2024): BERT with rotary positions, a gate in the feed-forward and no
biases but those of its LayerNorms. Version 2 with its mixture of experts is refused.
"""

from __future__ import annotations

from minifuse.models.architectures import Architecture, Head, section, without_biases
from minifuse.models.description import Config, ModelDescription

# The names of today for those that the family's first configurations use.
_NEW_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
# Settings that the first configurations can have, and the values of the models that are used.
_SETTINGS = {
    "activation_function": "swiglu",
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "scale_attn_by_inverse_layer_idx": False,
}


def _describe(config: Config) -> ModelDescription:
    if config.values.get("moe_every_n_layers") or config.values.get("num_experts"):
        raise ValueError(
            f"{config.path}: a mixture of experts; use sentence-transformers for this model, or "
            "nomic-embed-text-v1.5"
        )
    for key, wanted in _SETTINGS.items():
        config.want(key, wanted)
    if config.values.get("use_rms_norm"):
        raise ValueError(f"{config.path}: use_rms_norm is set, wanted LayerNorm")
    renamed = {_NEW_NAMES.get(key, key): value for key, value in config.values.items()}
    sizes = Config(config.path, renamed)
    if renamed.get("rope_theta") is not None:
        sizes.want("rotary_emb_base", renamed["rope_theta"])
        renamed["rotary_emb_base"] = renamed["rope_theta"]
    description = ModelDescription(
        vocab_size=sizes.integer("vocab_size"),
        max_position_embeddings=sizes.integer("max_position_embeddings", 2048),
        hidden_size=sizes.integer("hidden_size"),
        num_hidden_layers=sizes.integer("num_hidden_layers"),
        num_attention_heads=sizes.integer("num_attention_heads"),
        intermediate_size=sizes.integer("intermediate_size"),
        type_vocab_size=sizes.integer("type_vocab_size", 2),
        layer_norm_eps=sizes.number("layer_norm_eps", 1e-12),
        activation=sizes.activation("hidden_act", "silu"),
        has_position_embeddings=False,
        rotary_theta=sizes.rotary_theta("rotary_emb_base", 1000.0),
        has_gate=True,
    )
    heads = description.num_attention_heads
    if heads:
        sizes.want("head_dim", description.hidden_size // heads)
    return description


ARCHITECTURE = Architecture(
    model_types=("nomic_bert",),
    describe=_describe,
    prefixes=("nomic_bert.",),
    head=Head("pooler.dense"),
    tensors={
        **without_biases(
            "query", "key", "value", "attention_output", "ffn_gate", "ffn_input", "ffn_output"
        ),
        "embeddings.word": "embeddings.word_embeddings.weight",
        "embeddings.token_type": "embeddings.token_type_embeddings.weight",
        "embeddings.norm": "emb_ln",
        "layers.{}.query.weight": section("encoder.layers.{}.attn.Wqkv.weight", 0, 3),
        "layers.{}.key.weight": section("encoder.layers.{}.attn.Wqkv.weight", 1, 3),
        "layers.{}.value.weight": section("encoder.layers.{}.attn.Wqkv.weight", 2, 3),
        "layers.{}.attention_output.weight": "encoder.layers.{}.attn.out_proj.weight",
        "layers.{}.attention_norm": "encoder.layers.{}.norm1",
        "layers.{}.ffn_gate.weight": "encoder.layers.{}.mlp.fc12.weight",
        "layers.{}.ffn_input.weight": "encoder.layers.{}.mlp.fc11.weight",
        "layers.{}.ffn_output.weight": "encoder.layers.{}.mlp.fc2.weight",
        "layers.{}.ffn_norm": "encoder.layers.{}.norm2",
    },
)
