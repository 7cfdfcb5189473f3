"""Ranking consistency: the objective, and exact metrics (docs/method.md, section 3)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from edl_jax.errors import InputError
from edl_jax.objective.severity import Margin
from edl_jax.pairs import REGIMES

MOST_PAIRS = 16_384  # for violated_margins, whose time grows with their square
ROWS_AT_A_TIME = 128  # compared with all pairs at once


def margin_violation(
    losses: jax.Array, severities: jax.Array, *, margin: Margin, num_opponents: int
) -> jax.Array:
    """How much of the margins that severity asks for a loss fails to keep: a scalar of at least 0.

    Each pair i meets `num_opponents` others j. With e the severities, L the losses and
    `m = margin(e_i, e_j)` for the one with `e_i > e_j`, the value is

        sum max(0, m - (L_i - L_j)) / sum m

    so 0 means that every margin is kept and 1 is what a constant loss scores. Pairs of equal
    severity ask for nothing.

    Args:
      losses: `[num_pairs]`.
      severities: `[num_pairs]`, in random order: opponents are taken by position.
      margin: one of `MARGINS`, or any function of the worse and the better severity.
      num_opponents: how many others each pair meets, between 1 and `num_pairs - 1`.

    Raises:
      InputError: if the margin gives neither one value for each comparison nor a single one.
    """
    chex.assert_equal_shape([losses, severities])
    num_pairs = losses.size
    # Slices of arrays that go once around: cheaper than rolling them for each opponent.
    around_losses = jnp.concatenate([losses, losses[:num_opponents]])
    around_severities = jnp.concatenate([severities, severities[:num_opponents]])
    violated = demanded = jnp.zeros((), losses.dtype)
    for shift in range(1, num_opponents + 1):
        other_losses = around_losses[shift : shift + num_pairs]
        other_severities = around_severities[shift : shift + num_pairs]
        sign = jnp.sign(severities - other_severities)
        least = margin(
            jnp.maximum(severities, other_severities), jnp.minimum(severities, other_severities)
        )
        if jnp.shape(least) not in ((), losses.shape):
            raise InputError(
                f"margin {getattr(margin, '__name__', margin)} gave shape {jnp.shape(least)} for "
                f"severities of shape {losses.shape}; expected one value for each comparison."
            )
        asked = jnp.where(sign == 0, 0.0, least)
        kept = sign * (losses - other_losses)
        violated += jnp.sum(jax.nn.relu(asked - kept))
        demanded += jnp.sum(asked)
    return violated / jnp.maximum(demanded, jnp.finfo(demanded.dtype).tiny)


def rank_metrics(
    losses: ArrayLike,
    severities: ArrayLike,
    regimes: ArrayLike,
    *,
    margin: Margin,
    tolerance: float = 0.01,
) -> dict[str, float]:
    """Exact ranking metrics over all comparisons of the pairs with one another.

    All but `violated_margins` take O(n log n) on the host. That one, for which the margin may be
    any function, compares each of the first 16,384 pairs with every other, on the device.

    Args:
      losses: `[num_pairs]`, finite.
      severities: `[num_pairs]`, finite.
      regimes: `[num_pairs]` indices into `REGIMES`. Pairs are taken to be in random order.
      margin: one of `MARGINS`, or any function of the worse and the better severity.
      tolerance: comparisons whose severities differ by no more than this are left out of the
        pairwise accuracy (not of the other metrics).

    Returns:
      Each over all pairs, and as `NAME/REGIME` among the pairs of one regime (where there is
      nothing to compare, the entry is left out):
      `pairwise_accuracy`: share of comparisons where the more severe pair has the larger loss (a
      tie counts as wrong);
      `kendall_tau` (tau-b) and `spearman_rho`: as of SciPy;
      `violated_margins`: share of the comparisons of unequal severity, `e_i > e_j`, in which
      `L_i - L_j < margin(e_i, e_j)`. A margin kept but for float32 rounding is kept: a shortfall
      of up to `2^-23 (|L_i| + |L_j| + |e_i| + |e_j|)` is what rounding of these values and of
      their differences can cause.
    """
    loss, severity = np.asarray(losses, np.float64), np.asarray(severities, np.float64)
    regime = np.asarray(regimes)
    chex.assert_rank(loss, 1)
    chex.assert_equal_shape([loss, severity, regime])
    metrics = _order_metrics(loss, severity, tolerance)
    for index, name in enumerate(REGIMES):
        mine = regime == index
        own = _order_metrics(loss[mine], severity[mine], tolerance)
        metrics |= {f"{metric}/{name}": value for metric, value in own.items()}
    return metrics | _violated_margins(loss, severity, regime, margin)


def _order_metrics(loss: np.ndarray, severity: np.ndarray, tolerance: float) -> dict[str, float]:
    from scipy import stats  # takes a second

    metrics, order = {}, np.argsort(severity)
    loss, severity = loss[order], severity[order]
    milder = np.searchsorted(severity, severity - tolerance)  # how many are, for each pair
    if compared := milder.sum():
        metrics["pairwise_accuracy"] = float(_count_below(loss, milder).sum() / compared)
    if loss.size and np.ptp(loss) and np.ptp(severity):
        metrics["kendall_tau"] = float(stats.kendalltau(loss, severity).statistic)
        metrics["spearman_rho"] = float(stats.spearmanr(loss, severity).statistic)
    return metrics


def _count_below(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """For every value, how many of the first `length` values are below it.

    A wavelet matrix (Claude, Navarro and Ordonez 2015): values become ranks, sorted stably by one
    bit after the other; each query follows its range through the bits, all queries at once.
    """
    codes = limits = np.searchsorted(np.sort(values), values)
    start, stop, below = np.zeros_like(lengths), lengths.copy(), np.zeros_like(lengths)
    for bit in reversed(range(int(values.size).bit_length())):
        is_zero = (codes >> bit & 1) == 0
        zeros = np.concatenate([[0], np.cumsum(is_zero)])
        goes_up = (limits >> bit & 1) == 1
        zeros_start, zeros_stop = zeros[start], zeros[stop]
        below += np.where(goes_up, zeros_stop - zeros_start, 0)
        start = np.where(goes_up, zeros[-1] + start - zeros_start, zeros_start)
        stop = np.where(goes_up, zeros[-1] + stop - zeros_stop, zeros_stop)
        codes = np.concatenate([codes[is_zero], codes[~is_zero]])
    return below


def _violated_margins(
    loss: np.ndarray, severity: np.ndarray, regime: np.ndarray, margin: Margin
) -> dict[str, float]:
    loss, severity, regime = loss[:MOST_PAIRS], severity[:MOST_PAIRS], regime[:MOST_PAIRS]
    overall, within = map(
        np.asarray,
        _count_violated(
            loss.astype(np.float32), severity.astype(np.float32), regime, margin=margin
        ),
    )
    quotients = {"violated_margins": (overall.sum(), _untied(severity))}
    for index, name in enumerate(REGIMES):
        mine = regime == index
        quotients[f"violated_margins/{name}"] = (within[mine].sum(), _untied(severity[mine]))
    return {name: float(top / bottom) for name, (top, bottom) in quotients.items() if bottom}


def _untied(values: np.ndarray) -> int:
    """How many comparisons are between unequal values."""
    counts = np.unique(values, return_counts=True)[1]
    return int((values.size * (values.size - 1) - (counts * (counts - 1)).sum()) // 2)


@functools.partial(jax.jit, static_argnames="margin")
def _count_violated(
    losses: jax.Array, severities: jax.Array, regimes: jax.Array, *, margin: Margin
) -> tuple[jax.Array, jax.Array]:
    """Violated margins of each pair against milder ones: all of them, and those of its regime."""

    def count(pair: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        loss, severity, regime = pair
        asked = margin(jnp.maximum(severity, severities), jnp.minimum(severity, severities))
        size = abs(loss) + abs(losses) + abs(severity) + abs(severities)
        # In this form NaN and infinite losses do not keep a margin.
        is_kept = loss - losses + float(jnp.finfo(jnp.float32).eps) * size >= asked
        violated = (severity > severities) & ~is_kept
        return violated.sum(), (violated & (regime == regimes)).sum()

    return jax.lax.map(count, (losses, severities, regimes), batch_size=ROWS_AT_A_TIME)
