"""Statistics of studies, by scipy and statsmodels. What is not defined is NaN."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

LEVEL = 0.05
METHOD = (
    "± is the sample standard deviation; 95 % intervals of means are Student's t below 10 values "
    "and BCa bootstrap intervals from 10 on; p of paired t-tests, two-sided, corrected by Holm's "
    f"method for all tests of the table; significant below {LEVEL}. *Could have found* is the "
    "smallest true difference that the test finds four times in five, before correction."
)
_FEW_VALUES = 10  # below, a bootstrap's interval is too short, and depends on the resampling
_RESAMPLES = 5000
_RANK_RESAMPLES = 2000
_ROUNDING = 1e-9  # a spread below this share of the values is rounding: they are all the same


class Sample(NamedTuple):
    """Some numbers in short.

    Attributes:
      n: how many.
      mean: their mean.
      std: sample standard deviation (n - 1).
      low: lower end of a 95 % interval of the mean.
      high: its upper end.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float


class Paired(NamedTuple):
    """The difference between two sets of numbers, paired by their index.

    Attributes:
      difference: the differences in short.
      p: two-sided p-value of the paired t-test.
      detectable: the `minimum_detectable_effect` of so many differences.
    """

    difference: Sample
    p: float
    detectable: float


class Correlation(NamedTuple):
    """A rank correlation with its 95 % interval (percentile bootstrap over points) and p-value."""

    value: float
    low: float
    high: float
    p: float


def describe(values: np.ndarray | Sequence[float]) -> Sample:
    """Mean, deviation and interval of values `[n]`; all but the mean are NaN below two values.

    The order of the values has no effect. The interval is Student's t below 10 values, and from
    10 on a bootstrap's (BCa): of 5 normal values a bootstrap's would hold the true mean about 80
    times in 100.

    References:
      Efron, "Better bootstrap confidence intervals", JASA 1987.
    """
    values = np.sort(np.asarray(values, float))
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2 or not math.isfinite(mean):
        return Sample(n, mean, math.nan, math.nan, math.nan)
    std = float(values.std(ddof=1))
    if _is_constant(values):
        return Sample(n, mean, std, mean, mean)
    if n < _FEW_VALUES:
        low, high = scipy.stats.t.interval(1 - LEVEL, n - 1, loc=mean, scale=std / math.sqrt(n))
        return Sample(n, mean, std, float(low), float(high))
    ends = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Sample(n, mean, std, float(ends.low), float(ends.high))


def compare_paired(
    values: np.ndarray | Sequence[float], baseline: np.ndarray | Sequence[float]
) -> Paired:
    """The paired t-test of whether values and baseline, `[n]` each, differ.

    It is not defined where all differences are the same: p is then NaN.
    """
    values, baseline = np.asarray(values, float), np.asarray(baseline, float)
    found = describe(values - baseline)
    if math.isnan(found.std) or _is_constant(values - baseline, values, baseline):
        return Paired(found, math.nan, math.nan)
    p = float(scipy.stats.ttest_rel(values, baseline).pvalue)  # pyright: ignore
    return Paired(found, p, minimum_detectable_effect(found.std, found.n))


def minimum_detectable_effect(std: float, n: int) -> float:
    """Smallest true mean that a two-sided t-test of n values at `LEVEL` finds four times in five.

    Args:
      std: standard deviation of the values.
      n: how many there are.
    """
    from statsmodels.stats.power import TTestPower

    if n < 2:
        return math.nan
    return std * float(np.squeeze(TTestPower().solve_power(nobs=n, alpha=LEVEL, power=0.8)))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values adjusted for having been so many (Holm, Scandinavian Journal of Statistics 1979).

    NaN, a test that was not defined, is not counted and stays NaN.
    """
    from statsmodels.stats.multitest import multipletests

    found = np.array(p_values, float)  # a copy: it is written to
    defined = ~np.isnan(found)
    if defined.any():
        found[defined] = multipletests(found[defined], method="holm")[1]
    return found


def verdict(difference: float, p: float, detectable: float) -> str:
    """A test in words: higher, lower, not significant (and what could have been found), or none."""
    if math.isnan(p):
        return "not tested"
    if p < LEVEL:
        return "higher" if difference > 0 else "lower"
    return f"no significant difference, could have found {detectable:.2g}"


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Spearman's rank correlation of `[n]` and `[n]`; p is that of a permutation test."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    is_defined = np.isfinite(x).all() and np.isfinite(y).all()
    if len(x) < 3 or not is_defined or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(*[math.nan] * 4)

    def spearman(x: np.ndarray, y: np.ndarray) -> float:
        return float(scipy.stats.spearmanr(x, y).statistic)  # pyright: ignore

    order = np.lexsort((y, x))  # the interval is of the points, in whatever order they come
    x, y = x[order], y[order]
    points = np.random.default_rng(0).integers(len(x), size=(_RANK_RESAMPLES, len(x)))
    # A draw of one point many times has no correlation; such draws are left out.
    drawn = [row for row in points if np.ptp(x[row]) and np.ptp(y[row])]
    low, high = np.percentile([spearman(x[row], y[row]) for row in drawn], [2.5, 97.5])
    p = scipy.stats.permutation_test(
        (x,), lambda shuffled: spearman(shuffled, y), permutation_type="pairings",
        n_resamples=_RANK_RESAMPLES, vectorized=False, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    return Correlation(spearman(x, y), float(low), float(high), float(p))


def _is_constant(values: np.ndarray, *sources: np.ndarray) -> bool:
    """Whether values are the same but for rounding, their own or that of what they came from."""
    size = max(float(np.abs(x).max()) for x in (values, *sources))
    return float(np.ptp(values)) <= _ROUNDING * size
