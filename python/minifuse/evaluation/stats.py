"""Test whether a difference is real: tests and intervals for cosines and for scores of models.

Samples are one-dimensional: cosine similarities of two groups of pairs, or a score a query. Every
resampling takes a seed, so that a result can be had again. scipy carries the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Concentration",
    "Interval",
    "TestResult",
    "anisotropy",
    "bootstrap_interval",
    "concentration",
    "effect_size",
    "paired_difference",
    "permutation_test",
    "welch_t_test",
]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TestResult:
    """A statistic and how often chance alone gives one as far from zero."""

    __test__ = False  # for pytest: not a test

    statistic: float
    p_value: float


@dataclass(frozen=True)
class Interval:
    """A difference or mean with its bootstrap confidence interval."""

    estimate: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """True if zero lies outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Concentration:
    """Distances between random points, which gather around their mean as dimensions grow."""

    dim: int
    mean_distance: float
    relative_spread: float  # standard deviation / mean
    cosine_spread: float  # standard deviation of the cosine: 1 / sqrt(dim)


def scipy_stats() -> Any:
    """Return scipy.stats.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "statistics need scipy, which is not installed: pip install 'minifuse[eval]'"
        ) from error
    return stats


def _sample(name: str, values: Any, least: int) -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, wanted one dimension")
    if len(array) < least:
        raise ValueError(f"{name} has {len(array)} values, wanted at least {least}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a NaN or an infinity")
    return array


def _samples(a: Any, b: Any, paired: bool, least: int) -> tuple[FloatArray, FloatArray]:
    x, y = _sample("a", a, least), _sample("b", b, least)
    if paired and len(x) != len(y):
        raise ValueError(f"a has {len(x)} values and b {len(y)}: wanted as many for paired=True")
    return x, y


def welch_t_test(a: Any, b: Any, paired: bool = False) -> TestResult:
    """Welch's t-test of equal means, variances unequal (Welch 1947); Student's where paired.

    Args:
        a, b: samples of at least two values each.
        paired: a[i] and b[i] belong together.

    Raises:
        ValueError: too few values, not finite, or no spread at all in the difference.
        ImportError: scipy is not installed.
    """
    stats = scipy_stats()
    x, y = _samples(a, b, paired, 2)
    spread = np.ptp(x - y) if paired else max(np.ptp(x), np.ptp(y))
    if spread == 0:
        raise ValueError("the values do not vary, so there is no error to compare with")
    result = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
    return TestResult(float(result.statistic), float(result.pvalue))


def permutation_test(
    a: Any, b: Any, paired: bool = False, num_resamples: int = 9999, seed: int = 0
) -> TestResult:
    """Return how often a random relabelling of the values gives means as far apart, on either side.

    Args:
        a, b: samples; paired: a[i] and b[i] belong together, and only they are exchanged.
        num_resamples: relabellings, where there are more of them than that.
        seed: of the relabellings.

    Returns:
        The difference of means, a - b, and its p-value.

    Raises:
        ValueError: an empty sample, not finite, or unequal numbers where paired.
        ImportError: scipy is not installed.
    """
    stats = scipy_stats()
    x, y = _samples(a, b, paired, 1)
    result = stats.permutation_test(
        (x, y),
        lambda u, v, axis: u.mean(axis) - v.mean(axis),
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=num_resamples,
        batch=200,
        rng=np.random.default_rng(seed),
    )
    return TestResult(float(result.statistic), float(result.pvalue))


def bootstrap_interval(
    a: Any,
    b: Any = None,
    paired: bool = False,
    level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """A percentile bootstrap interval (Efron 1979) of the mean of a, or of mean(a) - mean(b).

    Args:
        a, b: samples; b may be None.
        paired: a[i] and b[i] belong together and are drawn together.
        level: of the interval, between 0 and 1.
        num_resamples: draws.
        seed: of the draws.

    Raises:
        ValueError: an empty sample, not finite, unequal numbers where paired, or another level.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, wanted between 0 and 1")
    rng = np.random.default_rng(seed)

    def means(sample: FloatArray) -> FloatArray:
        rows = max(1, (1 << 22) // len(sample))
        parts = [
            sample[rng.integers(0, len(sample), (min(rows, num_resamples - first), len(sample)))]
            for first in range(0, num_resamples, rows)
        ]
        return np.concatenate([part.mean(axis=1) for part in parts])

    if b is None:
        x = _sample("a", a, 1)
        estimate, draws = x.mean(), means(x)
    else:
        x, y = _samples(a, b, paired, 1)
        estimate = x.mean() - y.mean()
        draws = means(x - y) if paired else means(x) - means(y)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high), level)


def effect_size(a: Any, b: Any, paired: bool = False) -> float:
    """Hedges' g: the difference of means in standard deviations, corrected for small samples.

    The pooled standard deviation, or that of the differences where paired (Hedges 1981). 0.2 is
    called small, 0.5 medium, 0.8 large.

    Raises:
        ValueError: fewer than two values, not finite, or no spread.
    """
    x, y = _samples(a, b, paired, 2)
    if paired:
        degrees = len(x) - 1
        deviation = (x - y).std(ddof=1)
    else:
        degrees = len(x) + len(y) - 2
        deviation = np.sqrt(((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / degrees)
    if deviation == 0:
        raise ValueError("the values do not vary, so there is no deviation to measure by")
    return float((x.mean() - y.mean()) / deviation * (1 - 3 / (4 * degrees - 1)))


def paired_difference(
    statistic: Callable[[FloatArray, FloatArray], float],
    a: Any,
    b: Any,
    truth: Any,
    level: float = 0.95,
    num_resamples: int = 1999,
    seed: int = 0,
) -> tuple[Interval, float]:
    """The difference of statistic(a, truth) and statistic(b, truth), its interval and p-value.

    For statistics that are no means, as a rank correlation with human scores. The interval draws
    items with replacement, all three values of one together. The p-value exchanges a[i] and b[i]
    at random after both were turned into ranks, so that scores of two scales can be exchanged.

    Args:
        statistic: of two samples [n], as ``lambda x, t: scipy.stats.spearmanr(x, t).statistic``.
        a, b, truth: [n].
        level, num_resamples, seed: as of ``bootstrap_interval``.

    Returns:
        The interval of the difference, and how often chance alone gives one as large.

    Raises:
        ValueError: unequal numbers, fewer than two values, or not finite.
        ImportError: scipy is not installed.
    """
    stats = scipy_stats()
    x, y = _samples(a, b, True, 2)
    x, t = _samples(x, truth, True, 2)
    rng = np.random.default_rng(seed)
    estimate = statistic(x, t) - statistic(y, t)
    draws = []
    for _ in range(num_resamples):
        rows = rng.integers(0, len(t), len(t))
        if np.ptp(t[rows]) and np.ptp(x[rows]) and np.ptp(y[rows]):
            draws.append(statistic(x[rows], t[rows]) - statistic(y[rows], t[rows]))
    if not draws:
        raise ValueError("the values of one side are all equal: there is nothing to compare")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])

    rank_x, rank_y = stats.rankdata(x), stats.rankdata(y)
    observed = abs(statistic(rank_x, t) - statistic(rank_y, t))
    as_far = 1  # the observed one
    for _ in range(num_resamples):
        swap = rng.random(len(t)) < 0.5
        u, v = np.where(swap, rank_y, rank_x), np.where(swap, rank_x, rank_y)
        as_far += abs(statistic(u, t) - statistic(v, t)) >= observed - 1e-12
    return Interval(float(estimate), float(low), float(high), level), as_far / (num_resamples + 1)


def concentration(
    dims: Sequence[int] = (2, 8, 32, 128, 384, 768), num_points: int = 500, seed: int = 0
) -> list[Concentration]:
    """Measure how distances and cosines of random directions narrow as dimensions grow.

    Points are drawn evenly from the unit sphere: the cosine of two has mean 0 and deviation
    1 / sqrt(dim), and their distance gathers around sqrt(2) (Beyer et al. 1999).

    Args:
        dims: dimensions to try, each at least 2.
        num_points: drawn for each, at least 3.
        seed: of the draws.

    Raises:
        ValueError: a dimension below 2, or too few points.
    """
    if num_points < 3:
        raise ValueError(f"num_points is {num_points}, wanted at least 3")
    rng = np.random.default_rng(seed)
    rows = []
    for dim in dims:
        if dim < 2:
            raise ValueError(f"a dimension is {dim}, wanted at least 2")
        points = rng.standard_normal((num_points, dim))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        cosines = (points @ points.T)[np.triu_indices(num_points, 1)]
        distances = np.sqrt(np.maximum(0, 2 - 2 * cosines))
        mean = float(distances.mean())
        rows.append(
            Concentration(int(dim), mean, float(distances.std() / mean), float(cosines.std()))
        )
    return rows


def anisotropy(embeddings: Any, num_pairs: int = 100_000, seed: int = 0) -> float:
    """The mean cosine of two different random rows (Ethayarajh 2019): 0 where they go all ways.

    Args:
        embeddings: [n, d], n at least 2.
        num_pairs: drawn at random; all of them where there are no more.
        seed: of the draw.

    Raises:
        ValueError: another shape, fewer than two rows, or rows that are no directions.
    """
    x = np.asarray(embeddings, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"embeddings has shape {x.shape}, wanted [n, d] with n at least 2")
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("embeddings holds a row of zeros, a NaN or an infinity")
    unit = x / norms
    n = len(unit)
    if n * (n - 1) // 2 <= num_pairs:
        total = unit.sum(axis=0)
        return float((total @ total - n) / (n * (n - 1)))
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n, num_pairs)
    second = (first + rng.integers(1, n, num_pairs)) % n
    return float(np.einsum("ij,ij->i", unit[first], unit[second]).mean())
