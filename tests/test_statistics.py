import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from edl_jax.studies import statistics
from edl_jax.studies.statistics import (
    compare_paired,
    holm,
    minimum_detectable_effect,
    rank_correlation,
    summarize,
    verdict,
)


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


def test_summarize_by_hand():
    found = summarize(np.asarray([1.0, 2, 3, 6]))
    assert found[:3] == pytest.approx((4, 3, math.sqrt(14 / 3)))
    # 97.5 % of Student's t with 3 degrees of freedom are below 3.18245.
    assert found[3:] == pytest.approx((3 - 3.437435, 3 + 3.437435), rel=1e-5)


@pytest.mark.parametrize("n", [2, 5, 9, 10, 30])
def test_an_interval_depends_on_the_values_alone(n, few_resamples):
    """Neither on their order nor, of few, on the resampling, which moved published numbers."""
    rng = np.random.default_rng(n)
    values, others = rng.normal(57, 2, (2, n))
    order = rng.permutation(n)
    found = summarize(values)
    assert summarize(values[order]) == found
    assert summarize(values[::-1]) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_RESAMPLES", 300)
        assert (summarize(values) == found) == (n < 10)
    if n > 2:
        related = rank_correlation(values, others)
        assert related == rank_correlation(values[order], others[order])


@pytest.mark.parametrize(("n", "rate"), [(3, 0.95), (5, 0.95), (40, 0.94)])
def test_an_interval_holds_the_mean_as_often_as_told(n, rate, monkeypatch):
    monkeypatch.setattr(statistics, "_RESAMPLES", 1000)
    draws = np.random.default_rng(0).normal(7, 2, (300, n))
    held = sum(found.low <= 7 <= found.high for found in map(summarize, draws))
    assert in_binomial_bounds(held, 300, rate), held


def test_a_planted_difference_is_found(few_resamples):
    rng = np.random.default_rng(1)
    seeds = rng.normal(57, 3, 8)  # what a seed does to both, which pairing takes out
    found = compare_paired(seeds + 1 + rng.normal(0, 0.3, 8), seeds + rng.normal(0, 0.3, 8))
    assert found.p < 0.001
    assert found.difference.low < 1 < found.difference.high
    assert found.detectable < 1


def test_paired_by_hand(few_resamples):
    found = compare_paired(np.asarray([2.0, 4, 9, 8]), np.asarray([1.0, 2, 3, 4]))
    # Differences 1, 2, 6, 4: mean 3.25, deviation sqrt(59 / 12), t = 2.931 with 3 degrees.
    assert found.difference.mean == 3.25
    assert found.difference.std == pytest.approx(math.sqrt(59 / 12))
    assert found.p == pytest.approx(2 * stats.t.sf(3.25 / math.sqrt(59 / 48), 3))


def test_without_effect_one_in_twenty_is_found(few_resamples, monkeypatch):
    monkeypatch.setattr(
        statistics, "minimum_detectable_effect", lambda *_: math.nan
    )  # slow, not read
    rng = np.random.default_rng(2)
    p = [compare_paired(*both).p for both in rng.normal(0, 1, (300, 2, 8))]
    assert in_binomial_bounds(int(np.sum(np.asarray(p) < 0.05)), 300, 0.05)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_minimum_detectable_effect_is_found_four_times_in_five(n):
    size = minimum_detectable_effect(2.0, n)
    draws = np.random.default_rng(n).normal(size, 2.0, (5000, n))
    found = int(np.sum(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05))
    assert in_binomial_bounds(found, 5000, 0.8), found / 5000
    assert minimum_detectable_effect(4.0, n) == pytest.approx(2 * size)


def test_holm_by_hand_and_leaves_its_argument_alone():
    p_values = np.asarray([0.01, math.nan, 0.04, 0.03])
    # Sorted 0.01 * 3, 0.03 * 2, 0.04 * 1, none below the one before it.
    assert holm(p_values) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert p_values[0] == 0.01
    assert holm([]).size == 0
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


def test_rank_correlations_by_hand(few_resamples):
    x, y = np.arange(4), np.asarray([2, 1, 4, 3])
    assert rank_correlation(x, y)[0] == pytest.approx(0.6)
    # As likely as the orders say: of 4 points in order, 2 of 24.
    assert rank_correlation(x, x)[3] == pytest.approx(2 / 24)


def test_a_planted_order_is_found_at_any_scale(few_resamples):
    x = np.arange(1.0, 13)
    for y in (x**3, 1e-15 * np.exp(x)):
        found = rank_correlation(x, -y)
        assert found[:3] == pytest.approx((-1, -1, -1))
        assert found[3] < 0.02
    noisy = x + np.random.default_rng(4).normal(0, 2, 12)
    value, low, high, p = rank_correlation(x, noisy)
    assert 0.2 < low < value < high <= 1
    assert p < 0.02


def test_verdicts_in_words():
    assert verdict(0.5, 0.04, 0.3) == "higher"
    assert verdict(-0.5, 0.001, 0.3) == "lower"
    assert verdict(0.5, 0.05, 0.6) == "no significant difference, could have found 0.6"
    assert verdict(0.0, math.nan, math.nan) == "not tested"


def test_unrelated_numbers_have_no_order(few_resamples):
    x, y = np.random.default_rng(5).normal(size=(2, 30))
    _, low, high, p = rank_correlation(x, y)
    assert low < 0 < high
    assert p > 0.05


def test_what_is_not_defined_is_nan():
    for values in ([], [3.0]):
        found = summarize(np.asarray(values))
        assert found.n == len(values)
        assert np.isnan(found[2:]).all()
    assert np.isnan(summarize(np.asarray([1, math.nan, 2]))[1:]).all()
    same = compare_paired(np.asarray([0.3, 0.7, 57.1]), np.asarray([0.2, 0.6, 57.0]))
    assert same.difference.mean == pytest.approx(0.1)
    for found in (same, compare_paired(np.ones(1), np.zeros(1)), compare_paired([], [])):
        assert np.isnan(found[1:]).all()
    assert np.isnan(compare_paired(np.asarray([1, math.nan, 2]), np.zeros(3))[1:]).all()
    assert math.isnan(minimum_detectable_effect(1.0, 1))
    for x in ([1, 2], [1, 1, 1], [1, math.nan, 2]):
        found = rank_correlation(np.asarray(x), np.arange(len(x)))
        assert np.isnan(found).all()


def test_constant_values_have_an_interval_without_length():
    assert summarize(np.full(5, 57.1))[2:] == pytest.approx((0, 57.1, 57.1))
