"""ELECTRA (Clark et al. 2020): BERT by another prefix, where embeddings are as wide as layers.

The small models, whose embeddings are narrower and go through a matrix, are refused.
"""

from __future__ import annotations

from minifuse.models.architectures import Architecture, Head, bert
from minifuse.models.description import Config, ModelDescription


def _describe(config: Config) -> ModelDescription:
    description = bert.ARCHITECTURE.describe(config)
    width = config.integer("embedding_size", 128)
    if width != description.hidden_size:
        raise ValueError(
            f"{config.path}: embedding_size is {width}, wanted hidden_size="
            f"{description.hidden_size} (use sentence-transformers for small ELECTRA models)"
        )
    return description


ARCHITECTURE = Architecture(
    model_types=("electra",),
    describe=_describe,
    prefixes=("electra.",),
    head=Head("classifier.dense", "classifier.out_proj", activation="gelu"),
    tensors=bert.ARCHITECTURE.tensors,
)
