"""RoBERTa (Liu et al. 2019), and XLM-RoBERTa and CamemBERT, which are the same: BERT's layers, with
positions that begin behind the padding's.
"""

from __future__ import annotations

from dataclasses import replace

from minifuse.models.architectures import Architecture, Head, MaskedLanguage, Rows, bert
from minifuse.models.description import Config, ModelDescription

# Positions count from pad_token_id + 1 on. The row before is that of the padding, which a text may
# hold; those before that serve nobody.
_FIRST_POSITION = 2


def _describe(config: Config) -> ModelDescription:
    config.want("pad_token_id", _FIRST_POSITION - 1)
    description = bert.ARCHITECTURE.describe(config)
    positions = description.max_position_embeddings - _FIRST_POSITION
    return replace(description, max_position_embeddings=positions, padding_id=_FIRST_POSITION - 1)


ARCHITECTURE = Architecture(
    model_types=("roberta", "xlm-roberta", "camembert"),
    describe=_describe,
    prefixes=("roberta.",),
    head=Head("classifier.dense", "classifier.out_proj"),
    masked_language=MaskedLanguage(
        "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", ("lm_head.bias",), "gelu"
    ),
    tensors={
        **bert.ARCHITECTURE.tensors,
        "embeddings.position": Rows(
            "embeddings.position_embeddings.weight", slice(_FIRST_POSITION - 1, None)
        ),
    },
)
