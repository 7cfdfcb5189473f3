"""Statistics of studies: plain functions of arrays, computed by scipy and statsmodels.

Whatever is not defined for the numbers given, such as a deviation of one value, is NaN.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

LEVEL = 0.05  # at which something is said to differ
INTERVALS = "95 % intervals of means: Student's t below 10 values, BCa bootstrap from 10 on"
_FEW_VALUES = 10  # below, a bootstrap's interval is too short, and depends on the resampling
_RESAMPLES = 5000
_RANK_RESAMPLES = 2000
_FEW_POINTS = 8  # below, all orders are tried: 2 / n! is the least that a p-value can be
_ROUNDING = 1e-9  # a spread below this share of the values is rounding: they are all the same


class Sample(NamedTuple):
    """Some numbers in short.

    Attributes:
      n: how many.
      mean: their mean.
      deviation: sample standard deviation (n - 1).
      standard_error: of the mean.
      low: lower end of a 95 % interval of the mean (`describe`).
      high: its upper end.
    """

    n: int
    mean: float
    deviation: float
    standard_error: float
    low: float
    high: float


class Paired(NamedTuple):
    """What is different between two sets of numbers, `[n]` each, paired by their index.

    Attributes:
      difference: the differences in short.
      effect_size: Cohen's d of paired differences, mean over standard deviation (d_z).
      p_t: two-sided p-value of the paired t-test.
      p_wilcoxon: of Wilcoxon's signed-rank test; with n below 6 it cannot be below 0.05.
      p_welch: of Welch's t-test, which does not use the pairing.
      detectable: smallest true difference that the paired t-test finds with this n and deviation
        four times in five, at the 5 % level.
    """

    difference: Sample
    effect_size: float
    p_t: float
    p_wilcoxon: float
    p_welch: float
    detectable: float


class Correlation(NamedTuple):
    """A rank correlation with its 95 % interval (percentile bootstrap over points) and p-value."""

    value: float
    low: float
    high: float
    p: float


class Waiting(NamedTuple):
    """Times until something happened, of which some ended before it did (Kaplan-Meier).

    Attributes:
      n: how many were watched.
      reached: how many got there.
      median: time by which half have got there; infinite if fewer did.
      low: lower end of its 95 % interval (Brookmeyer and Crowley).
      high: upper end.
    """

    n: int
    reached: int
    median: float
    low: float
    high: float


def describe(values: np.ndarray) -> Sample:
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
        return Sample(n, mean, math.nan, math.nan, math.nan, math.nan)
    deviation = float(values.std(ddof=1))
    error = deviation / math.sqrt(n)
    if _is_constant(values):
        return Sample(n, mean, deviation, error, mean, mean)
    if n < _FEW_VALUES:
        low, high = scipy.stats.t.interval(1 - LEVEL, n - 1, loc=mean, scale=error)
        return Sample(n, mean, deviation, error, float(low), float(high))
    ends = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Sample(n, mean, deviation, error, float(ends.low), float(ends.high))


def compare_paired(values: np.ndarray, baseline: np.ndarray) -> Paired:
    """Tests of whether values and baseline, `[n]` paired by index, differ.

    Differences that are all the same leave the t-tests undefined: everything is then NaN.

    References:
      Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945.
      Welch, "The generalization of Student's problem when several different population variances
      are involved", Biometrika 1947.
      Cohen, "Statistical power analysis for the behavioral sciences", 1988.
    """
    values, baseline = np.asarray(values, float), np.asarray(baseline, float)
    differences = values - baseline
    short = describe(differences)
    if math.isnan(short.deviation) or _is_constant(differences, values, baseline):
        return Paired(short, *[math.nan] * 5)
    with warnings.catch_warnings():
        # Of one group whose values are all the same, such as of times that were watched in vain.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        # Typed as Any: scipy's results have no types that a checker could follow.
        t: Any = scipy.stats.ttest_rel(values, baseline)
        wilcoxon: Any = scipy.stats.wilcoxon(differences)
        welch: Any = scipy.stats.ttest_ind(values, baseline, equal_var=False)
    return Paired(
        short,
        effect_size=short.mean / short.deviation,
        p_t=float(t.pvalue),
        p_wilcoxon=float(wilcoxon.pvalue),
        p_welch=float(welch.pvalue),
        detectable=detectable_difference(short.deviation, len(values)),
    )


def detectable_difference(deviation: float, n: int) -> float:
    """Smallest true mean that a two-sided t-test of n values at `LEVEL` finds four times in five.

    Args:
      deviation: standard deviation of the values.
      n: how many there are.
    """
    from statsmodels.stats.power import TTestPower

    if n < 2:
        return math.nan
    size = TTestPower().solve_power(nobs=n, alpha=LEVEL, power=0.8)
    return float(np.squeeze(size)) * deviation


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having been so many (Holm, Scandinavian Journal of Statistics 1979).

    NaN, a test that was not defined, is not counted and stays NaN.
    """
    from statsmodels.stats.multitest import multipletests

    found = np.array(p_values, float)  # a copy: it is written to
    defined = ~np.isnan(found)
    if defined.any():
        found[defined] = multipletests(found[defined], method="holm")[1]
    return found.tolist()


def rank_correlation(x: np.ndarray, y: np.ndarray, *, method: Callable[..., Any]) -> Correlation:
    """A rank correlation of `[n]` and `[n]`, such as `scipy.stats.spearmanr` or `kendalltau`."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    is_defined = not (np.isnan(x).any() or np.isnan(y).any())
    if len(x) < 3 or not is_defined or np.all(x == x[0]) or np.all(y == y[0]):
        return Correlation(*[math.nan] * 4)
    order = np.lexsort((y, x))  # the interval is of the points, in whatever order they come
    x, y = x[order], y[order]
    found = method(x, y)

    points = np.random.default_rng(0).integers(len(x), size=(_RANK_RESAMPLES, len(x)))
    with warnings.catch_warnings():
        # A draw of one point many times has no correlation; such draws are left out.
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        draws = [method(x[drawn], y[drawn]).statistic for drawn in points]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    p = found.pvalue
    if len(x) < _FEW_POINTS:  # Spearman's would be 0 where all are in order
        p = scipy.stats.permutation_test(
            (x,), lambda shuffled: method(shuffled, y).statistic, permutation_type="pairings",
            n_resamples=math.factorial(len(x)), vectorized=False,
        ).pvalue  # fmt: skip
    return Correlation(float(found.statistic), float(low), float(high), float(p))


def waiting_time(times: np.ndarray, reached: np.ndarray) -> Waiting:
    """Kaplan-Meier's estimate of how long something takes.

    Args:
      times: `[n]`, when it happened, or how long was watched in vain.
      reached: `[n]` booleans, whether it happened.

    References:
      Kaplan and Meier, "Nonparametric estimation from incomplete observations", JASA 1958.
      Brookmeyer and Crowley, "A confidence interval for the median survival time", Biometrics 1982.
    """
    if not len(times):
        return Waiting(0, 0, *[math.nan] * 3)
    survival = scipy.stats.ecdf(_censored(times, reached)).sf
    steps, left = survival.quantiles, survival.probabilities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # at the last step nobody is left
        band = survival.confidence_interval(method="log-log")

    def first(probabilities: np.ndarray) -> float:
        below = np.flatnonzero(probabilities <= 0.5 + _ROUNDING)
        return float(steps[below[0]]) if len(below) else math.inf

    reached = np.asarray(reached, bool)
    # The band is not defined where all or none are left; there its lower end is the estimate.
    ends = first(np.fmin(band.low.probabilities, left)), first(band.high.probabilities)
    return Waiting(len(reached), int(reached.sum()), first(left), *ends)


def logrank(
    times: np.ndarray, reached: np.ndarray, other_times: np.ndarray, other_reached: np.ndarray
) -> float:
    """P-value of the log-rank test that two groups take equally long; as `waiting_time`."""
    if not (np.any(reached) or np.any(other_reached)):
        return math.nan
    groups = _censored(times, reached), _censored(other_times, other_reached)
    with np.errstate(invalid="ignore"):  # NaN where never two groups were watched at once
        return float(scipy.stats.logrank(*groups).pvalue)


def _censored(times: np.ndarray, reached: np.ndarray) -> "scipy.stats.CensoredData":
    times, reached = np.asarray(times, float), np.asarray(reached, bool)
    return scipy.stats.CensoredData(uncensored=times[reached], right=times[~reached])


def _is_constant(values: np.ndarray, *sources: np.ndarray) -> bool:
    """Whether values are the same but for rounding, their own or that of what they came from."""
    size = max(float(np.abs(x).max()) for x in (values, *sources))
    return float(np.ptp(values)) <= _ROUNDING * size
