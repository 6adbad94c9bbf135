"""minifuse.evaluation.stats against scipy, against what is known, and on what has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from minifuse.evaluation import stats


@pytest.fixture
def groups(rng):
    return rng.normal(0.5, 0.1, 80), rng.normal(0.45, 0.2, 120)


def test_welch(groups):
    result = stats.welch_t_test(*groups)
    wanted = scipy_stats.ttest_ind(*groups, equal_var=False)
    assert (result.statistic, result.p_value) == (wanted.statistic, wanted.pvalue)
    a, b = groups[0], groups[1][:80]
    assert stats.welch_t_test(a, b, paired=True).p_value == scipy_stats.ttest_rel(a, b).pvalue


@pytest.mark.parametrize("paired", [False, True])
def test_permutation_agrees_with_the_t_test(rng, paired):
    """Both ask the same question of nearly normal values."""
    for shift in (0.0, 0.02, 0.05):
        a = rng.normal(0.5 + shift, 0.1, 100)
        b = rng.normal(0.5, 0.1, 100)
        ours = stats.permutation_test(a, b, paired, num_resamples=2000)
        assert ours.statistic == pytest.approx(a.mean() - b.mean())
        assert ours.p_value == pytest.approx(stats.welch_t_test(a, b, paired).p_value, abs=0.04)
    assert stats.permutation_test(a, b, paired) == stats.permutation_test(a, b, paired)


def test_the_interval_covers_the_truth(rng):
    """95 intervals of 100, give or take three deviations."""
    covers = 0
    for seed in range(200):
        interval = stats.bootstrap_interval(
            rng.normal(1, 1, 60), rng.normal(0.5, 2, 80), num_resamples=500, seed=seed
        )
        assert interval.low < interval.estimate < interval.high
        covers += interval.low < 0.5 < interval.high
    assert 177 <= covers <= 199


def test_a_paired_interval_is_narrower(rng):
    a = rng.normal(0, 1, 100)
    b = a + rng.normal(0.05, 0.05, 100)
    paired = stats.bootstrap_interval(b, a, paired=True)
    alone = stats.bootstrap_interval(b, a)
    assert paired.excludes_zero
    assert not alone.excludes_zero
    assert paired.estimate == pytest.approx(alone.estimate)
    one = stats.bootstrap_interval(b - a)
    assert (one.low, one.high) == (paired.low, paired.high)


def test_effect_size():
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([3.0, 4, 5, 6, 7])
    pooled = np.sqrt(2.5)
    assert stats.effect_size(a, b) == pytest.approx(-2 / pooled * (1 - 3 / 31))
    assert stats.effect_size(b, a) == -stats.effect_size(a, b)


def test_the_difference_of_two_correlations(rng):
    def spearman(x, t):
        return scipy_stats.spearmanr(x, t).statistic

    truth = rng.normal(0, 1, 300)
    good, bad = truth + rng.normal(0, 0.5, 300), truth + rng.normal(0, 3, 300)
    interval, p_value = stats.paired_difference(spearman, good, bad, truth, num_resamples=300)
    assert interval.estimate == pytest.approx(spearman(good, truth) - spearman(bad, truth))
    assert interval.excludes_zero
    assert p_value < 0.01
    near = good + rng.normal(0, 0.02, 300)
    interval, p_value = stats.paired_difference(spearman, good, near, truth, num_resamples=300)
    assert not interval.excludes_zero
    assert p_value > 0.05


def test_concentration():
    rows = stats.concentration((2, 32, 512))
    assert [row.dim for row in rows] == [2, 32, 512]
    for row in rows:
        assert row.cosine_spread == pytest.approx(row.dim**-0.5, rel=0.05)
    assert rows[0].relative_spread > 5 * rows[1].relative_spread / 2 > rows[2].relative_spread
    assert rows[2].mean_distance == pytest.approx(np.sqrt(2), rel=0.01)


def test_anisotropy(rng):
    round_cloud = rng.standard_normal((1000, 64))
    assert abs(stats.anisotropy(round_cloud)) < 0.01
    cone = round_cloud + 3.0
    exact = stats.anisotropy(cone, num_pairs=10**6)
    assert exact > 0.85
    assert stats.anisotropy(cone) == pytest.approx(exact, abs=0.002)


def test_what_has_no_answer(rng):
    values = rng.normal(0, 1, 5)
    for call, message in (
        (lambda: stats.welch_t_test(values, [1.0]), "b has 1 values, wanted at least 2"),
        (lambda: stats.welch_t_test([1.0, 1], [2.0, 2]), "do not vary"),
        (lambda: stats.welch_t_test(values, values[:3], paired=True), "wanted as many"),
        (lambda: stats.permutation_test([], values), "a has 0 values"),
        (lambda: stats.bootstrap_interval([[1.0]]), "wanted one dimension"),
        (lambda: stats.bootstrap_interval([np.nan]), "holds a NaN"),
        (lambda: stats.bootstrap_interval([1.0], level=95), "level is 95"),
        (lambda: stats.effect_size([1.0, 1], [1.0, 1]), "do not vary"),
        (lambda: stats.concentration([1]), "a dimension is 1"),
        (lambda: stats.concentration([2], num_points=1), "num_points is 1"),
        (lambda: stats.anisotropy(np.zeros((3, 4))), "a row of zeros"),
        (lambda: stats.anisotropy(values), "wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
