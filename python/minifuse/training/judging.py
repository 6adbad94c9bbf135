"""Score a model on held-out pairs during training, and plot the scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from minifuse.evaluation import stats
from minifuse.search import mining
from minifuse.training.pairs import TrainingPairs

__all__ = ["judge_of", "plot_training", "rank_of_answers", "scoring_judge_of"]

FloatArray = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], FloatArray]
Judge = TypeVar("Judge", bound=Callable[..., float])


def rank_of_answers(encode: Encode, pairs: TrainingPairs) -> npt.NDArray[np.int64]:
    """The rank, from 1, of each anchor's answer among all different answers, by cosine.

    Args:
        encode: texts -> vectors.
        pairs: each anchor with its answer; equal answers count as one.

    Returns:
        [n]; beyond the first hundred: 101.
    """
    answers = list(dict.fromkeys(pairs.positives))
    place = {text: i for i, text in enumerate(answers)}
    found = mining.semantic_search(
        encode(pairs.anchors), encode(answers), top_k=min(100, len(answers))
    )
    ranks = []
    for hits, positive in zip(found, pairs.positives, strict=True):
        ids = [hit["corpus_id"] for hit in hits]
        wanted = place[positive]
        ranks.append(ids.index(wanted) + 1 if wanted in ids else 101)
    return np.array(ranks, np.int64)


def judge_of(pairs: TrainingPairs) -> Callable[[Encode], float]:
    """encode -> the mean reciprocal rank of the answers, or Spearman's rho with the scores."""

    def mean_reciprocal_rank(encode: Encode) -> float:
        ranks = rank_of_answers(encode, pairs)
        return float(np.where(ranks <= 100, 1 / ranks, 0).mean())

    def spearman(encode: Encode) -> float:
        first, second = encode(pairs.anchors), encode(pairs.positives)
        cosines = (first * second).sum(axis=1)
        return float(stats.scipy_stats().spearmanr(cosines, pairs.scores).statistic)

    return _known(spearman if pairs.scores else mean_reciprocal_rank, pairs.digest())


def _known(judge: Judge, identity: str) -> Judge:
    """Return a judge that says what it judges by: a training goes on with the same one only."""
    judge.identity = identity  # type: ignore[attr-defined]  # functions take any
    return judge


Score = Callable[[Sequence[tuple[str, str]]], FloatArray]


def scoring_judge_of(
    pairs: TrainingPairs, negatives: Sequence[Sequence[str]] = ()
) -> Callable[[Score], float]:
    """scores of pairs -> Spearman's rho with people's, or the mean reciprocal rank of right texts.

    Args:
        pairs: with scores, or without.
        negatives: of each pair without a score, the wrong texts that its right one is ranked with.
    """

    def mean_reciprocal_rank(score: Score) -> float:
        rows = [(anchor, text) for anchor, right, wrong in
                zip(pairs.anchors, pairs.positives, negatives, strict=True)
                for text in (right, *wrong)]  # fmt: skip
        scores, ranks, begin = score(rows), [], 0
        for wrong in negatives:
            own = scores[begin : begin + 1 + len(wrong)]
            ranks.append(1 + int((own[1:] >= own[0]).sum()))  # of equal scores, the last
            begin += len(own)
        return float(np.mean(1 / np.array(ranks)))

    def spearman(score: Score) -> float:
        found = score(list(zip(pairs.anchors, pairs.positives, strict=True)))
        return float(stats.scipy_stats().spearmanr(found, pairs.scores).statistic)

    wrong = hashlib.sha256(json.dumps([list(texts) for texts in negatives]).encode())
    identity = pairs.digest() + wrong.hexdigest()
    return _known(spearman if pairs.scores else mean_reciprocal_rank, identity)


def plot_training(result: Any, path: str | Path) -> None:
    """Loss and quality over the steps, as a .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    from minifuse.files.plots import new_figure, save_figure

    figure = new_figure(8, 4)
    chart = figure.subplots()
    steps = np.arange(1, len(result.losses) + 1)
    chart.plot(steps, result.losses, color="0.75", lw=1)
    width = max(1, len(steps) // 40)
    smooth = np.convolve(result.losses, np.ones(width) / width, "valid")
    chart.plot(steps[width - 1 :], smooth, color="C0", label="loss")
    chart.set_xlabel("step")
    chart.set_ylabel("loss")
    if result.evaluations:
        other = chart.twinx()
        other.plot(*zip(*result.evaluations, strict=True), "o-", color="C1", label="quality")
        other.set_ylabel("quality")
    figure.legend(loc="upper right")
    save_figure(figure, path)
