"""Is one model better than another, or one group of pairs closer than another, or is it chance?

Every difference comes with a bootstrap interval over the items (pairs or queries) and the p-value
of a permutation test; it is called real where the interval excludes zero and p is below its level.
Several measures of the same items are several chances to be wrong: for the verdict on all of them a
p-value is multiplied by their number (Bonferroni; the first step of Holm 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.evaluation import (
    LabelledPairs,
    RetrievalTask,
    ScoredPairs,
    rank_documents,
    ranking_rows,
    read_labelled_pairs,
    read_retrieval_task,
    read_scored_pairs,
    rerank_documents,
    retrieval_rows,
    stats,
)
from minifuse.files.texts import read_header
from minifuse.search import similarity

__all__ = [
    "Comparison",
    "Difference",
    "compare_groups",
    "compare_on_pairs",
    "compare_on_retrieval",
    "compare_reranked",
    "plot_comparison",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Comparison by one measure: both values, a - b with its interval, and the p-value.

    ``num_measures`` are looked at together: chance has as many tries (Bonferroni).
    """

    measure: str
    a: float
    b: float
    interval: stats.Interval
    p_value: float
    num_measures: int = 1

    @property
    def is_real(self) -> bool:
        """True if chance does not explain the difference."""
        is_rare = self.num_measures * self.p_value < 1 - self.interval.level
        return self.interval.excludes_zero and is_rare


@dataclass(frozen=True)
class Comparison:
    """Differences between a and b over the same items.

    ``values_a`` and ``values_b`` are what a plot shows: cosines, or a score a query.
    """

    a: str
    b: str
    num_items: int
    differences: list[Difference]
    values_a: FloatArray
    values_b: FloatArray
    axis: str

    def __post_init__(self) -> None:
        count = len(self.differences)
        together = [replace(one, num_measures=count) for one in self.differences]
        object.__setattr__(self, "differences", together)

    def verdict(self) -> str:
        """One sentence that says whether the difference is real, in any measure.

        It tells the first measure's figures, or the first's that decides.
        """
        real = [one for one in self.differences if one.is_real]
        told = (real or self.differences)[0]
        interval = told.interval
        figures = (
            f"{told.measure} {told.a:.4f} against {told.b:.4f}, difference "
            f"{interval.estimate:+.4f}, {interval.level:.0%} interval {interval.low:+.4f} to "
            f"{interval.high:+.4f}, p = {told.p_value:.2g}, {self.num_items} items"
        )
        if not real:
            return f"There is no real difference between {self.a} and {self.b} ({figures})."
        better, worse = (self.a, self.b) if interval.estimate > 0 else (self.b, self.a)
        return f"There is a real difference: {better} is above {worse} ({figures})."


def _cosines(model: Any, first: list[str], second: list[str]) -> FloatArray:
    vectors = model.encode([*first, *second])
    return np.asarray(
        similarity.pairwise_cos_sim(vectors[: len(first)], vectors[len(first) :]), np.float64
    )


def compare_on_pairs(
    a: Any, b: Any, pairs: ScoredPairs, names: tuple[str, str] = ("a", "b"),
    level: float = 0.95, num_resamples: int = 999, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Two models by how well their cosines agree with human scores of the same pairs.

    Args:
        a, b: anything with sentence-transformers' encode.
        pairs: with human scores.
        names: of a and b, for people.
        level, num_resamples, seed: of the intervals and permutations.

    Returns:
        Differences of Spearman's rho, Pearson's r and Kendall's tau-b.

    Raises:
        ValueError: fewer than two pairs, or human scores that are all equal.
        ImportError: scipy is not installed.
    """
    scipy_stats = stats.scipy_stats()
    truth = np.asarray(pairs.scores, np.float64)
    if len(truth) < 2 or np.ptp(truth) == 0:
        raise ValueError(
            f"{len(truth)} pairs with scores {sorted(set(truth))[:3]}: wanted at least two pairs, "
            "scored differently"
        )
    first, second = (_cosines(model, pairs.sentences1, pairs.sentences2) for model in (a, b))
    measures: dict[str, Callable[[FloatArray, FloatArray], float]] = {
        "Spearman": lambda x, t: float(scipy_stats.spearmanr(x, t).statistic),
        "Pearson": lambda x, t: float(np.corrcoef(x, t)[0, 1]),
        "Kendall": lambda x, t: float(scipy_stats.kendalltau(x, t).statistic),
    }
    differences = []
    for name, measure in measures.items():
        interval, p_value = stats.paired_difference(
            measure, first, second, truth, level, num_resamples, seed
        )
        differences.append(
            Difference(name, measure(first, truth), measure(second, truth), interval, p_value)
        )
    return Comparison(*names, len(truth), differences, first, second, "cosine of a pair")


def compare_on_retrieval(
    a: Any, b: Any, task: RetrievalTask, names: tuple[str, str] = ("a", "b"),
    level: float = 0.95, num_resamples: int = 9999, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Two models by how well the same queries find their documents.

    Args and errors as of ``compare_on_pairs``.

    Returns:
        Differences of the means over queries of nDCG@10, recall@10 and reciprocal rank.
    """
    rows = retrieval_rows(a, task), retrieval_rows(b, task)
    return _compare_rows(*rows, names, level, num_resamples, seed)


def compare_reranked(
    reranker: Any, model: Any, task: RetrievalTask,
    names: tuple[str, str] = ("reranked", "ranked by vectors"),
    level: float = 0.95, num_resamples: int = 9999, seed: int = 0,
) -> Comparison:  # fmt: skip
    """The first 100 documents of each query, sorted by a CrossEncoder and by a model's vectors.

    Args:
        reranker: a CrossEncoder of one label.
        model: a SentenceTransformer.
        task: queries, documents, and which is relevant.
        names, level, num_resamples, seed: as of ``compare_on_pairs``.

    Returns:
        Differences of the means over queries of nDCG@10, recall@10 and reciprocal rank.
    """
    ranking = rank_documents(model, task)
    reranked = ranking_rows(task, rerank_documents(reranker, task, ranking))
    return _compare_rows(reranked, ranking_rows(task, ranking), names, level, num_resamples, seed)


def _compare_rows(
    rows_a: dict[str, list[float]], rows_b: dict[str, list[float]], names: tuple[str, str],
    level: float, num_resamples: int, seed: int,
) -> Comparison:  # fmt: skip
    differences = []
    for measure in ("ndcg_at_10", "recall_at_10", "mrr_at_10"):
        x, y = np.asarray(rows_a[measure]), np.asarray(rows_b[measure])
        interval = stats.bootstrap_interval(x, y, True, level, num_resamples, seed)
        test = stats.permutation_test(x, y, True, num_resamples, seed)
        differences.append(
            Difference(measure, float(x.mean()), float(y.mean()), interval, test.p_value)
        )
    values_a, values_b = np.asarray(rows_a["ndcg_at_10"]), np.asarray(rows_b["ndcg_at_10"])
    return Comparison(*names, len(values_a), differences, values_a, values_b, "nDCG@10 of a query")


def compare_groups(
    model: Any, pairs: LabelledPairs, names: tuple[str, str] = ("label 1", "label 0"),
    level: float = 0.95, num_resamples: int = 9999, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Test whether a model's cosines of paraphrases lie above those of other pairs.

    Returns:
        The difference of the mean cosines; its p-value is the permutation test's.

    Raises:
        ValueError: a group is empty.
        ImportError: scipy is not installed.
    """
    labels = np.asarray(pairs.labels)
    if not (labels == 1).any() or not (labels == 0).any():
        raise ValueError(f"all {len(labels)} labels are equal: wanted both 0 and 1")
    cosines = _cosines(model, pairs.sentences1, pairs.sentences2)
    x, y = cosines[labels == 1], cosines[labels == 0]
    interval = stats.bootstrap_interval(x, y, False, level, num_resamples, seed)
    test = stats.permutation_test(x, y, False, num_resamples, seed)
    difference = Difference("mean cosine", float(x.mean()), float(y.mean()), interval, test.p_value)
    return Comparison(*names, len(labels), [difference], x, y, "cosine of a pair")


def compare(
    a: Any, b: Any | None, path: str | Path, names: tuple[str, str], seed: int = 0
) -> Comparison:
    """By what a file or folder holds: scored pairs, labelled pairs (one model), or retrieval.

    Raises:
        ValueError: one model where two are compared, or the reverse; what the readers raise.
    """
    path = Path(path)
    if not path.is_dir() and "label" in read_header(path):
        if b is not None:
            raise ValueError(f"{path} has two groups of pairs, which are compared by one model")
        return compare_groups(a, read_labelled_pairs(path), seed=seed)
    if b is None:
        raise ValueError(f"{path} has no groups (a column label): wanted a second model")
    if path.is_dir():
        return compare_on_retrieval(a, b, read_retrieval_task(path), names, seed=seed)
    return compare_on_pairs(a, b, read_scored_pairs(path), names, seed=seed)


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """The differences with their intervals, and how the values lie, as a .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    from minifuse.files.plots import new_figure, save_figure

    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    a, b = _short(comparison.a), _short(comparison.b)
    if a == b:
        a, b = comparison.a, comparison.b
    for row, difference in enumerate(comparison.differences):
        interval = difference.interval
        color = "#d55e00" if difference.is_real else "#0072b2"
        left.plot([interval.low, interval.high], [row, row], color=color, lw=3)
        left.plot([interval.estimate], [row], "o", color=color)
    left.axvline(0, color="0.5", lw=1)
    left.set_yticks(range(len(comparison.differences)))
    left.set_yticklabels([difference.measure for difference in comparison.differences])
    left.set_ylim(len(comparison.differences) - 0.5, -0.5)
    level = comparison.differences[0].interval.level
    left.set_title(f"{a}\nminus {b}", fontsize=9)
    left.set_xlabel(f"difference, {level:.0%} interval (orange: real)", fontsize=9)
    values = np.concatenate([comparison.values_a, comparison.values_b])
    bins = np.linspace(values.min(), values.max() + 1e-9, 41)
    for name, one, color in (
        (a, comparison.values_a, "#0072b2"),
        (b, comparison.values_b, "#e69f00"),
    ):
        right.hist(one, bins, alpha=0.55, density=True, label=name, color=color)
    right.set_xlabel(comparison.axis, fontsize=9)
    right.set_ylabel("density", fontsize=9)
    right.set_yticks([])
    right.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    save_figure(figure, path)


def _short(name: str, most: int = 40) -> str:
    """Return the end of a long name, which tells two folders apart."""
    return name if len(name) <= most else "…" + name[1 - most :]
