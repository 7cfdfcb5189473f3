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
Numbers = np.ndarray | Sequence[float]


class Sample(NamedTuple):
    """How many numbers, their mean, standard deviation, and the ends of the mean's interval."""

    n: int
    mean: float
    std: float
    low: float
    high: float


class Paired(NamedTuple):
    """Differences in short, the t-test's p, and the `minimum_detectable_effect`."""

    difference: Sample
    p: float
    detectable: float


def summarize(values: Numbers) -> Sample:
    """Mean, deviation and interval of values `[n]`; all but the mean are NaN below two values."""
    values = np.sort(np.asarray(values, float))  # their order has no effect on the resampling
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    if n < 2 or not math.isfinite(mean):
        return Sample(n, mean, math.nan, math.nan, math.nan)
    std = float(values.std(ddof=1))
    if _is_constant(values):
        return Sample(n, mean, std, mean, mean)
    if n < _FEW_VALUES:
        low, high = scipy.stats.t.interval(1 - LEVEL, n - 1, loc=mean, scale=std / math.sqrt(n))
    else:
        low, high = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=_RESAMPLES, rng=np.random.default_rng(0)
        ).confidence_interval
    return Sample(n, mean, std, float(low), float(high))


def compare_paired(values: Numbers, baseline: Numbers) -> Paired:
    """The paired t-test of `[n]` and `[n]`; p is NaN where all differences are the same."""
    values, baseline = np.asarray(values, float), np.asarray(baseline, float)
    difference = summarize(values - baseline)
    if math.isnan(difference.std) or _is_constant(values - baseline, values, baseline):
        return Paired(difference, math.nan, math.nan)
    p = float(scipy.stats.ttest_rel(values, baseline).pvalue)  # pyright: ignore
    return Paired(difference, p, minimum_detectable_effect(difference.std, difference.n))


def minimum_detectable_effect(std: float, n: int) -> float:
    """Smallest mean of n values that a two-sided t-test at `LEVEL` finds four times in five."""
    from statsmodels.stats.power import TTestPower

    if n < 2:
        return math.nan
    return std * float(np.squeeze(TTestPower().solve_power(nobs=n, alpha=LEVEL, power=0.8)))


def holm(p_values: Numbers) -> np.ndarray:
    """P-values adjusted for having been so many (Holm, 1979); NaN is not counted and stays NaN."""
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p_values, float)  # a copy: it is written to
    defined = ~np.isnan(adjusted)
    if defined.any():
        adjusted[defined] = multipletests(adjusted[defined], method="holm")[1]
    return adjusted


def verdict(difference: float, p: float, detectable: float) -> str:
    """A test in words: higher, lower, not significant (and what could have been found), or none."""
    if math.isnan(p):
        return "not tested"
    if p < LEVEL:
        return "higher" if difference > 0 else "lower"
    return f"no significant difference, could have found {detectable:.2g}"


def rank_correlation(x: Numbers, y: Numbers) -> tuple[float, float, float, float]:
    """Spearman's correlation, the ends of a percentile bootstrap's interval, a permutation's p."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    is_defined = np.isfinite(x).all() and np.isfinite(y).all()
    if len(x) < 3 or not is_defined or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan, math.nan, math.nan

    def spearman(x: np.ndarray, y: np.ndarray) -> float:
        return float(scipy.stats.spearmanr(x, y).statistic)  # pyright: ignore

    order = np.lexsort((y, x))  # the interval is of the points, in whatever order they come
    x, y = x[order], y[order]
    points = np.random.default_rng(0).integers(len(x), size=(_RANK_RESAMPLES, len(x)))
    # A draw of one point many times has no correlation; such draws are left out.
    drawn = [spearman(x[row], y[row]) for row in points if np.ptp(x[row]) and np.ptp(y[row])]
    low, high = np.percentile(drawn, [2.5, 97.5])
    p = scipy.stats.permutation_test(
        (x,), lambda shuffled: spearman(shuffled, y), permutation_type="pairings",
        n_resamples=_RANK_RESAMPLES, vectorized=False, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    return spearman(x, y), float(low), float(high), float(p)


def mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Squared maximum mean discrepancy of samples `[n, d]` and `[m, d]`; unbiased, perhaps below 0.

    Its kernel is Gaussian. Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html
    """

    def total(a: np.ndarray, b: np.ndarray) -> float:
        squared = scipy.spatial.distance.cdist(a, b, "sqeuclidean")
        return float(np.exp(-squared / (2 * bandwidth**2)).sum())

    n, m = len(x), len(y)
    within_x = (total(x, x) - n) / (n * (n - 1))
    within_y = (total(y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2 * total(x, y) / (n * m)


def is_covered(points: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Which points `[n, d]` lie inside the support of a sample `[m, d]`, `[n]` booleans.

    The support: balls around the sample's points, each reaching to its third-nearest other point.
    Kynkäänniemi et al., NeurIPS 2019, https://arxiv.org/abs/1904.06991
    """
    near, _ = scipy.spatial.KDTree(support).query(support, 4)  # itself is the first
    radii = near[:, -1] * (1 + 1e-12)  # a distance that is the radius but for rounding is inside
    return (scipy.spatial.distance.cdist(points, support) <= radii).any(axis=1)


def _is_constant(values: np.ndarray, *sources: np.ndarray) -> bool:
    """Whether values are the same but for rounding, their own or that of what they came from."""
    size = max(float(np.abs(x).max()) for x in (values, *sources))
    return float(np.ptp(values)) <= _ROUNDING * size
