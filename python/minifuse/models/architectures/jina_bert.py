"""JinaBERT v2 (Günther et al. 2023): BERT without embeddings of positions, whose scores have a bias
linear in the distance of their tokens, and with a gate in the feed-forward.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import (
    Architecture,
    Computed,
    Head,
    bert,
    section,
    without_biases,
)
from minifuse.models.description import Config, ModelDescription


def _describe(config: Config) -> ModelDescription:
    config.want("feed_forward_type", "geglu")
    return replace(
        bert.describe_sizes(config),
        activation="gelu",
        has_position_embeddings=False,
        has_relative_bias=True,
        has_gate=True,
    )


def slopes(num_heads: int) -> list[float]:
    """Return what a unit of distance takes from the scores of each head (Press et al. 2022).

    A geometric sequence for a power of two; another number of heads takes the rest from the
    sequence for the next power, every other one.
    """
    power = 1 << (num_heads.bit_length() - 1)
    own = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    finer = [2.0 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    return own + finer[: num_heads - power]


def _biases(description: ModelDescription) -> npt.NDArray[np.float32]:
    most = description.max_position_embeddings
    distances = np.abs(np.arange(1 - most, most)).astype(np.float32)
    return -np.array(slopes(description.num_attention_heads), np.float32)[:, None] * distances


ARCHITECTURE = Architecture(
    model_types=("bert with alibi", "jina_bert with alibi"),
    describe=_describe,
    prefixes=("bert.",),
    head=Head("pooler.dense"),
    tensors={
        **bert.ARCHITECTURE.tensors,
        **without_biases("ffn_gate", "ffn_input"),
        "attention.relative_bias": Computed(_biases),
        "layers.{}.ffn_gate.weight": section("encoder.layer.{}.mlp.gated_layers.weight", 0, 2),
        "layers.{}.ffn_input.weight": section("encoder.layer.{}.mlp.gated_layers.weight", 1, 2),
        "layers.{}.ffn_output": "encoder.layer.{}.mlp.wo",
        "layers.{}.ffn_norm": "encoder.layer.{}.mlp.layernorm",
    },
)
