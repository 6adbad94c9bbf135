"""BERT (Devlin et al. 2019), and the models of its layout: MiniLM, BGE, E5, GTE."""

from __future__ import annotations

from minifuse.models.architectures import Architecture, Head, MaskedLanguage
from minifuse.models.description import Config, ModelDescription


def _describe(config: Config) -> ModelDescription:
    config.want("position_embedding_type", "absolute")
    return describe_sizes(config)


def describe_sizes(config: Config) -> ModelDescription:
    """Return the description of an encoder by BERT's keys, whatever its positions are."""
    config.want_encoder()
    return ModelDescription(
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        hidden_size=config.integer("hidden_size"),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=config.integer("num_attention_heads"),
        intermediate_size=config.integer("intermediate_size"),
        type_vocab_size=config.integer("type_vocab_size", 2),
        layer_norm_eps=config.number("layer_norm_eps", 1e-12),
        activation=config.activation("hidden_act"),
    )


ARCHITECTURE = Architecture(
    model_types=("bert",),
    describe=_describe,
    prefixes=("bert.",),
    head=Head("pooler.dense"),
    masked_language=MaskedLanguage(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        biases=("cls.predictions.bias",),
    ),
    tensors={
        "embeddings.word": "embeddings.word_embeddings.weight",
        "embeddings.position": "embeddings.position_embeddings.weight",
        "embeddings.token_type": "embeddings.token_type_embeddings.weight",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{}.query": "encoder.layer.{}.attention.self.query",
        "layers.{}.key": "encoder.layer.{}.attention.self.key",
        "layers.{}.value": "encoder.layer.{}.attention.self.value",
        "layers.{}.attention_output": "encoder.layer.{}.attention.output.dense",
        "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "layers.{}.ffn_input": "encoder.layer.{}.intermediate.dense",
        "layers.{}.ffn_output": "encoder.layer.{}.output.dense",
        "layers.{}.ffn_norm": "encoder.layer.{}.output.LayerNorm",
    },
)
