"""MPNet (Song et al. 2020): BERT's layers with positions that begin behind the padding's, no token
types, and a bias of every score by the distance of its tokens, which all layers share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import Architecture, Derived, Head, MaskedLanguage, Rows, bert
from minifuse.models.description import Config, ModelDescription

_FIRST_POSITION = 2
# Half of the buckets are for distances of each sign: the first hold one distance each, the others
# grow with the logarithm up to 128 (Raffel et al. 2020, section 2.1).
_NUM_BUCKETS, _NUM_EXACT = 32, 8


def _describe(config: Config) -> ModelDescription:
    config.want("pad_token_id", _FIRST_POSITION - 1)
    config.want("relative_attention_num_buckets", _NUM_BUCKETS)
    description = bert.ARCHITECTURE.describe(config)
    positions = description.max_position_embeddings - _FIRST_POSITION
    return replace(
        description,
        max_position_embeddings=positions,
        padding_id=_FIRST_POSITION - 1,
        type_vocab_size=0,
        has_relative_bias=True,
    )


def _bucket(distance: int) -> int:
    """Return the bucket of a key so many tokens after its query."""
    far = abs(distance)
    # 8 + floor(8 log(far / 8) / log(128 / 8)) = 2 + floor(log2(far^2)), here without rounding.
    bucket = far if far < _NUM_EXACT else min(1 + (far * far).bit_length(), _NUM_BUCKETS // 2 - 1)
    return bucket + (_NUM_BUCKETS // 2 if distance > 0 else 0)


def _by_distance(
    biases: npt.NDArray[np.float32], description: ModelDescription
) -> npt.NDArray[np.float32]:
    """Biases [buckets, heads] as [heads, 2 max_position_embeddings - 1]."""
    wanted = (_NUM_BUCKETS, description.num_attention_heads)
    if biases.shape != wanted:
        raise ValueError(f"wanted {list(wanted)}")
    most = description.max_position_embeddings
    buckets = [_bucket(distance) for distance in range(1 - most, most)]
    return np.ascontiguousarray(biases[buckets].T)


ARCHITECTURE = Architecture(
    model_types=("mpnet",),
    describe=_describe,
    prefixes=("mpnet.",),
    head=Head("classifier.dense", "classifier.out_proj"),
    masked_language=MaskedLanguage(
        "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", ("lm_head.bias",), "gelu"
    ),
    tensors={
        "embeddings.word": "embeddings.word_embeddings.weight",
        "embeddings.position": Rows(
            "embeddings.position_embeddings.weight", slice(_FIRST_POSITION - 1, None)
        ),
        "embeddings.norm": "embeddings.LayerNorm",
        "attention.relative_bias": Derived("encoder.relative_attention_bias.weight", _by_distance),
        "layers.{}.query": "encoder.layer.{}.attention.attn.q",
        "layers.{}.key": "encoder.layer.{}.attention.attn.k",
        "layers.{}.value": "encoder.layer.{}.attention.attn.v",
        "layers.{}.attention_output": "encoder.layer.{}.attention.attn.o",
        "layers.{}.attention_norm": "encoder.layer.{}.attention.LayerNorm",
        "layers.{}.ffn_input": "encoder.layer.{}.intermediate.dense",
        "layers.{}.ffn_output": "encoder.layer.{}.output.dense",
        "layers.{}.ffn_norm": "encoder.layer.{}.output.LayerNorm",
    },
)
