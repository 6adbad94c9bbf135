"""Measure how cosines agree with human scores: Spearman, Pearson, Kendall's tau-b (by scipy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minifuse import util
from minifuse.files.texts import number_of, read_rows

__all__ = ["PairScores", "ScoredPairs", "evaluate_pairs", "read_scored_pairs"]


@dataclass(frozen=True)
class ScoredPairs:
    """Sentence pairs with a human score each."""

    sentences1: list[str]
    sentences2: list[str]
    scores: list[float]


@dataclass(frozen=True)
class PairScores:
    """Correlations of the cosines with the human scores, each in [-1, 1]."""

    spearman: float
    pearson: float
    kendall: float
    num_pairs: int


def read_scored_pairs(path: str | Path) -> ScoredPairs:
    """A .tsv or .csv with a header and the columns score, sentence1, sentence2.

    In a .tsv a quotation mark is a character like any other.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or a score is no number (the line is named).
    """
    pairs = ScoredPairs([], [], [])
    for line, (score, first, second) in read_rows(path, ["score", "sentence1", "sentence2"]):
        pairs.scores.append(number_of(score, "score", path, line))
        pairs.sentences1.append(first)
        pairs.sentences2.append(second)
    return pairs


def evaluate_pairs(
    model: Any,
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    **encode_arguments: Any,
) -> PairScores:
    """Embed both sides and correlate cosine with score.

    Args:
        model: anything with sentence-transformers' encode.
        sentences1, sentences2, scores: of equal length, at least two.
        encode_arguments: passed to encode.

    Raises:
        ImportError: scipy is not installed.
        ValueError: lengths differ, fewer than two pairs, or all scores or all cosines equal (no
            correlation).
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "evaluation needs scipy, which is not installed: pip install 'minifuse[eval]'"
        ) from error
    if not len(sentences1) == len(sentences2) == len(scores):
        raise ValueError(
            f"{len(sentences1)} first sentences, {len(sentences2)} second sentences and "
            f"{len(scores)} scores: wanted as many of each"
        )
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} pairs, wanted at least 2")
    human = np.asarray(scores, np.float64)
    if not np.isfinite(human).all():
        raise ValueError("a score is not finite")
    if (human == human[0]).all():
        raise ValueError(f"all scores are {human[0]}: nothing to correlate with")
    embeddings = model.encode([*sentences1, *sentences2], **encode_arguments)
    cosines = util.pairwise_cos_sim(embeddings[: len(human)], embeddings[len(human) :])
    if not np.isfinite(cosines).all():
        raise ValueError("a vector of the model holds a NaN or an infinity")
    if not np.ptp(cosines) > 0:
        raise ValueError(f"all cosines are {cosines[0]}: nothing to correlate with")
    return PairScores(
        spearman=float(stats.spearmanr(cosines, human).statistic),
        pearson=float(stats.pearsonr(cosines, human).statistic),
        kendall=float(stats.kendalltau(cosines, human).statistic),
        num_pairs=len(human),
    )
