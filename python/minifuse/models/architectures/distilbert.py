"""DistilBERT (Sanh et al. 2019): BERT without token types, by other names."""

from __future__ import annotations

from minifuse.models.architectures import Architecture, Head, MaskedLanguage
from minifuse.models.description import Config, ModelDescription


def _describe(config: Config) -> ModelDescription:
    return ModelDescription(
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings", 512),
        hidden_size=config.integer("dim"),
        num_hidden_layers=config.integer("n_layers"),
        num_attention_heads=config.integer("n_heads"),
        intermediate_size=config.integer("hidden_dim"),
        layer_norm_eps=1e-12,
        activation=config.activation("activation"),
    )


ARCHITECTURE = Architecture(
    model_types=("distilbert",),
    describe=_describe,
    prefixes=("distilbert.",),
    dropouts=("dropout", "attention_dropout"),
    head=Head("pre_classifier", activation="relu"),
    masked_language=MaskedLanguage("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    tensors={
        "embeddings.word": "embeddings.word_embeddings.weight",
        "embeddings.position": "embeddings.position_embeddings.weight",
        "embeddings.token_type": None,
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{}.query": "transformer.layer.{}.attention.q_lin",
        "layers.{}.key": "transformer.layer.{}.attention.k_lin",
        "layers.{}.value": "transformer.layer.{}.attention.v_lin",
        "layers.{}.attention_output": "transformer.layer.{}.attention.out_lin",
        "layers.{}.attention_norm": "transformer.layer.{}.sa_layer_norm",
        "layers.{}.ffn_input": "transformer.layer.{}.ffn.lin1",
        "layers.{}.ffn_output": "transformer.layer.{}.ffn.lin2",
        "layers.{}.ffn_norm": "transformer.layer.{}.output_layer_norm",
    },
)
