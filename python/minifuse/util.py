"""The functions of sentence_transformers.util, by the same names.

Inputs are arrays, tensors or lists of them, [n, d] or [d]. Arrays in, array out; where an input is
a torch tensor the result is one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from minifuse.search.mining import (
    community_detection,
    paraphrase_mining,
    paraphrase_mining_embeddings,
    semantic_search,
)
from minifuse.search.similarity import (
    SimilarityFunction,
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
    normalize_embeddings,
    pairwise_angle_sim,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
    quantize_embeddings,
    truncate_embeddings,
)

__all__ = [
    "InputExample",
    "LoggingHandler",
    "SimilarityFunction",
    "batch_to_device",
    "community_detection",
    "cos_sim",
    "dot_score",
    "euclidean_sim",
    "information_retrieval",
    "manhattan_sim",
    "normalize_embeddings",
    "pairwise_angle_sim",
    "pairwise_cos_sim",
    "pairwise_dot_score",
    "pairwise_euclidean_sim",
    "pairwise_manhattan_sim",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "pytorch_cos_sim",
    "quantize_embeddings",
    "semantic_search",
    "truncate_embeddings",
]

# Old names of the same functions.
pytorch_cos_sim = cos_sim
information_retrieval = semantic_search


@dataclass
class InputExample:
    """Texts that belong together, and their label.

    Attributes:
        guid: a name of one's own.
        texts: the texts.
        label: a number, of a class or a score.
    """

    guid: str = ""
    texts: list[str] = field(default_factory=list)
    label: float = 0

    def __str__(self) -> str:
        return f"<InputExample> label: {self.label}, texts: {'; '.join(self.texts)}"


class LoggingHandler(logging.Handler):
    """Writes log records so that they do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record above the bar."""
        try:
            from tqdm.auto import tqdm

            tqdm.write(self.format(record))
        except Exception:
            self.handleError(record)


def batch_to_device(batch: dict[str, Any], target_device: Any) -> dict[str, Any]:
    """Move the tensors of a dictionary to a device; all else stays."""
    return {
        key: value.to(target_device) if hasattr(value, "to") else value
        for key, value in batch.items()
    }
