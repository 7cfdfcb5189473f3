import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from edl_jax.studies import statistics
from edl_jax.studies.statistics import (
    compare_paired,
    describe,
    detectable_difference,
    holm,
    logrank,
    rank_correlation,
    waiting_time,
)

# Weeks in remission of 21 pairs of leukaemia patients, of which some ended before a relapse
# (Freireich et al., Blood 1963): the textbook example of censored times.
MERCAPTOPURINE = np.asarray(
    [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
)
RELAPSED = np.asarray([1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0], bool)
PLACEBO = np.asarray([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23])
ALL_RELAPSED = np.ones(21, bool)


def in_binomial_bounds(count: int, n: int, rate: float) -> bool:
    """Whether a count would be beyond these bounds fewer than once in 1,000 times."""
    low, high = stats.binom.interval(0.999, n, rate)
    return low <= count <= high


@pytest.fixture(scope="module", autouse=True)
def quick_holm():
    """Without the garbage collection that statsmodels makes in each call, 0.1 s beside JAX."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: None)
        yield


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "_RESAMPLES", 99)
    monkeypatch.setattr(statistics, "_RANK_RESAMPLES", 200)


def test_describe_by_hand():
    found = describe(np.asarray([1.0, 2, 3, 6]))
    assert found[:4] == pytest.approx((4, 3, math.sqrt(14 / 3), math.sqrt(14 / 12)))
    # 97.5 % of Student's t with 3 degrees of freedom are below 3.18245.
    assert found[4:] == pytest.approx((3 - 3.437435, 3 + 3.437435), rel=1e-5)


@pytest.mark.parametrize("n", [2, 5, 9, 10, 30])
def test_an_interval_depends_on_the_values_alone(n, few_resamples):
    """Neither on their order nor, of few, on the resampling, which moved published numbers."""
    rng = np.random.default_rng(n)
    values, others = rng.normal(57, 2, (2, n))
    order = rng.permutation(n)
    found = describe(values)
    assert describe(values[order]) == found
    assert describe(values[::-1]) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_RESAMPLES", 300)
        assert (describe(values) == found) == (n < 10)
    if n > 2:
        related = rank_correlation(values, others, method=stats.kendalltau)
        assert related == rank_correlation(values[order], others[order], method=stats.kendalltau)


@pytest.mark.parametrize(("n", "rate"), [(3, 0.95), (5, 0.95), (40, 0.94)])
def test_an_interval_holds_the_mean_as_often_as_told(n, rate, monkeypatch):
    monkeypatch.setattr(statistics, "_RESAMPLES", 1000)
    draws = np.random.default_rng(0).normal(7, 2, (300, n))
    held = sum(found.low <= 7 <= found.high for found in map(describe, draws))
    assert in_binomial_bounds(held, 300, rate), held


def test_a_planted_difference_is_found(few_resamples):
    rng = np.random.default_rng(1)
    seeds = rng.normal(57, 3, 8)  # what a seed does to both, which pairing takes out
    found = compare_paired(seeds + 1 + rng.normal(0, 0.3, 8), seeds + rng.normal(0, 0.3, 8))
    assert found.p_t < 0.001
    assert found.p_wilcoxon < 0.01
    assert found.p_welch > 0.2
    assert found.difference.low < 1 < found.difference.high
    assert found.effect_size == pytest.approx(found.difference.mean / found.difference.deviation)
    assert found.detectable < 1


def test_paired_by_hand(few_resamples):
    found = compare_paired(np.asarray([2.0, 4, 9, 8]), np.asarray([1.0, 2, 3, 4]))
    # Differences 1, 2, 6, 4: mean 3.25, deviation sqrt(59 / 12), t = 2.931 with 3 degrees.
    assert found.difference.mean == 3.25
    assert found.difference.deviation == pytest.approx(math.sqrt(59 / 12))
    assert found.p_t == pytest.approx(2 * stats.t.sf(3.25 / math.sqrt(59 / 48), 3))
    assert found.p_wilcoxon == pytest.approx(2 / 16)  # all signs alike, of 16 choices of signs
    # Welch: variances 131 / 12 and 5 / 3 of 4 values each.
    a, b = 131 / 48, 5 / 12
    degrees = (a + b) ** 2 / (a**2 / 3 + b**2 / 3)
    assert found.p_welch == pytest.approx(2 * stats.t.sf(3.25 / math.sqrt(a + b), degrees))


def test_without_effect_one_in_twenty_is_found(few_resamples, monkeypatch):
    monkeypatch.setattr(statistics, "detectable_difference", lambda *_: math.nan)  # slow, not read
    rng = np.random.default_rng(2)
    p_t, p_welch, p_wilcoxon = [], [], []
    for values, baseline in rng.normal(0, 1, (300, 2, 8)):
        found = compare_paired(values, baseline)
        p_t.append(found.p_t)
        p_welch.append(found.p_welch)
        p_wilcoxon.append(found.p_wilcoxon)
    assert in_binomial_bounds(int(np.sum(np.asarray(p_t) < 0.05)), 300, 0.05)
    assert in_binomial_bounds(int(np.sum(np.asarray(p_welch) < 0.05)), 300, 0.05)
    # Of the 256 choices of signs of 8 ranks, 10 give a p-value below 0.05.
    assert in_binomial_bounds(int(np.sum(np.asarray(p_wilcoxon) < 0.05)), 300, 10 / 256)


def test_wilcoxon_of_five_cannot_be_below_a_twentieth(few_resamples):
    for differences in ([1.0, 2, 3, 4, 5], [1.0, 1, 1, 1, 2], [0.0, 1, 1, 2, 3]):
        assert compare_paired(np.asarray(differences), np.zeros(5)).p_wilcoxon >= 0.05


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_detectable_difference_is_found_four_times_in_five(n):
    size = detectable_difference(2.0, n)
    draws = np.random.default_rng(n).normal(size, 2.0, (5000, n))
    found = int(np.sum(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05))
    assert in_binomial_bounds(found, 5000, 0.8), found / 5000
    assert detectable_difference(4.0, n) == pytest.approx(2 * size)


def test_holm_by_hand_and_leaves_its_argument_alone():
    p_values = np.asarray([0.01, math.nan, 0.04, 0.03])
    # Sorted 0.01 * 3, 0.03 * 2, 0.04 * 1, none below the one before it.
    assert holm(p_values) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert p_values[0] == 0.01
    assert holm([]) == []
    assert np.isnan(holm([math.nan])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    found = holm(p_values)
    assert all(p - 1e-12 <= q <= 1 for p, q in zip(p_values, found, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.asarray(found)[order]) >= -1e-12)


def test_holm_finds_something_in_one_of_twenty_families_without_effect():
    families = np.random.default_rng(3).uniform(size=(1500, 4))
    assert in_binomial_bounds(sum(min(holm(f)) < 0.05 for f in families), 1500, 1 - 0.9875**4)
    assert (families < 0.05).any(axis=1).mean() > 0.15  # what it corrects


def test_a_group_that_is_all_the_same_is_compared_without_a_warning():
    constant, other = np.full(10, 12800.0), np.array([3200.0, *[12800.0] * 9])
    found = compare_paired(other, constant)
    assert found.difference.mean == pytest.approx(-960)
    assert found.p_t == pytest.approx(stats.ttest_1samp(other - constant, 0).pvalue)


def test_few_points_in_order_are_as_likely_as_their_orders_say(few_resamples):
    for n, orders in ((3, 6), (4, 24), (5, 120)):
        for method in (stats.spearmanr, stats.kendalltau):
            found = rank_correlation(np.arange(n), np.arange(n), method=method)
            assert found.p == pytest.approx(2 / orders)


def test_rank_correlations_by_hand(few_resamples):
    x, y = np.arange(4), np.asarray([2, 1, 4, 3])
    assert rank_correlation(x, y, method=stats.kendalltau).value == pytest.approx(1 / 3)
    assert rank_correlation(x, y, method=stats.spearmanr).value == pytest.approx(0.6)


def test_a_planted_order_is_found_at_any_scale(few_resamples):
    x = np.arange(1.0, 13)
    for y in (x**3, 1e-15 * np.exp(x)):
        found = rank_correlation(x, -y, method=stats.kendalltau)
        assert found[:3] == pytest.approx((-1, -1, -1))
        assert found.p < 1e-6
    noisy = x + np.random.default_rng(4).normal(0, 2, 12)
    found = rank_correlation(x, noisy, method=stats.spearmanr)
    assert 0.2 < found.low < found.value < found.high <= 1
    assert found.p < 0.01


def test_unrelated_numbers_have_no_order(few_resamples):
    x, y = np.random.default_rng(5).normal(size=(2, 30))
    found = rank_correlation(x, y, method=stats.kendalltau)
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_waiting_times_of_the_textbook():
    treated = waiting_time(MERCAPTOPURINE, RELAPSED)
    assert treated == (21, 9, 23, 13, math.inf)
    assert waiting_time(PLACEBO, ALL_RELAPSED) == (21, 21, 8, 4, 11)
    p = logrank(MERCAPTOPURINE, RELAPSED, PLACEBO, ALL_RELAPSED)
    assert p == pytest.approx(stats.chi2.sf(16.793, 1), rel=1e-3)  # the published statistic


def test_waiting_times_by_hand():
    # Left: 3/4 after 1, one lost at 2, 3/8 after 3.
    assert waiting_time(np.asarray([1, 2, 3, 4]), np.asarray([1, 0, 1, 1], bool)).median == 3
    assert waiting_time(np.asarray([4, 3, 2, 1]), np.ones(4, bool)).median == 2
    # Expected of the first group 1/2 and 1/3 of its 2, with variances 1/4 and 2/9.
    p = logrank(np.asarray([1, 2]), np.ones(2, bool), np.asarray([3, 4]), np.ones(2, bool))
    assert p == pytest.approx(stats.chi2.sf((7 / 6) ** 2 / (17 / 36), 1))


def test_the_interval_of_a_median_by_hand():
    """Exponential Greenwood: S^exp(-+1.96 e), e^2 the sum of d / (n (n - d)) over log^2 S."""
    times = np.arange(1, 9)
    left = 1 - times[:-1] / 8
    e = np.sqrt(np.cumsum([1 / (n * (n - 1)) for n in range(8, 1, -1)])) / -np.log(left)
    low, high = (int(np.argmax(left ** np.exp(z * e) <= 0.5)) + 1 for z in (1.959964, -1.959964))
    assert waiting_time(times, np.ones(8, bool)) == (8, 8, 4, low, high)
    assert (low, high) == (1, 7)


def test_equal_waiting_times_are_told_apart_one_time_in_twenty():
    draws = np.random.default_rng(6).exponential(10, (300, 2, 25))
    found = sum(logrank(a, a < 20, b, b < 20) < 0.05 for a, b in np.minimum(draws, 20))
    assert in_binomial_bounds(found, 300, 0.05)


def test_what_is_not_defined_is_nan():
    for values in ([], [3.0]):
        found = describe(np.asarray(values))
        assert found.n == len(values)
        assert np.isnan(found[2:]).all()
    assert np.isnan(describe(np.asarray([1, math.nan, 2]))[1:]).all()
    same = compare_paired(np.asarray([0.3, 0.7, 57.1]), np.asarray([0.2, 0.6, 57.0]))
    assert same.difference.mean == pytest.approx(0.1)
    for found in (same, compare_paired(np.ones(1), np.zeros(1)), compare_paired([], [])):
        assert np.isnan(found[1:]).all()
    assert np.isnan(compare_paired(np.asarray([1, math.nan, 2]), np.zeros(3))[1:]).all()
    assert math.isnan(detectable_difference(1.0, 1))
    for x in ([1, 2], [1, 1, 1], [1, math.nan, 2]):
        found = rank_correlation(np.asarray(x), np.arange(len(x)), method=stats.spearmanr)
        assert np.isnan(found).all()


def test_constant_values_have_an_interval_without_length():
    assert describe(np.full(5, 57.1))[2:] == pytest.approx((0, 0, 57.1, 57.1))


def test_waiting_where_nothing_or_all_happens_at_once():
    never = np.zeros(3, bool)
    assert waiting_time(np.asarray([5, 5, 5]), never) == (3, 0, math.inf, math.inf, math.inf)
    assert waiting_time(np.asarray([5]), np.ones(1, bool)) == (1, 1, 5, 5, math.inf)
    assert np.isnan(waiting_time(np.asarray([]), np.zeros(0, bool))[2:]).all()
    assert math.isnan(logrank(np.ones(3), never, np.ones(3), never))
    assert math.isnan(logrank(np.asarray([5]), ~never[:1], np.asarray([3]), never[:1]))
