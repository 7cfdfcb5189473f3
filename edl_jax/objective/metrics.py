"""How well a loss orders held-out pairs (docs/method.md, section 3)."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from edl_jax.objective.severity import Margin
from edl_jax.pairs import REGIMES

MOST_PAIRS = 16_384  # for violated_margins, whose time grows with their square
ROWS_AT_A_TIME = 128  # compared with all pairs at once


def rank_metrics(
    losses: ArrayLike,
    severities: ArrayLike,
    regimes: ArrayLike,
    *,
    margin: Margin,
    tolerance: float = 0.01,
) -> dict[str, float]:
    """Exact ranking metrics over all comparisons of the pairs with one another.

    All but `violated_margins` are counted in O(n log n) on the host, so that 10^5 pairs (5 * 10^9
    comparisons) take about a second. `violated_margins`, for which the margin may be any function,
    compares each of the first 16,384 pairs with every other, on the device and in at most tens of
    MB; a new margin function compiles once for each size.

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
      `kendall_tau`: Kendall's tau-b (Kendall 1945);
      `spearman_rho`: the correlation of ranks, ties having their mean rank (Spearman 1904);
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
    order = np.argsort(severity)
    loss, severity = loss[order], severity[order]
    # How many pairs are milder than each: they come before it.
    milder = np.searchsorted(severity, severity)
    decidedly = np.searchsorted(severity, severity - tolerance)
    agreed, concordant, not_discordant = (
        _count_below(
            loss,
            np.concatenate([decidedly, milder, milder]),
            np.concatenate([loss, loss, np.nextafter(loss, np.inf)]),
        )
        .reshape(3, -1)
        .sum(axis=1)
    )
    discordant = milder.sum() - not_discordant
    ranks = _centred_ranks(loss), _centred_ranks(severity)
    quotients = {
        "pairwise_accuracy": (agreed, decidedly.sum()),
        "kendall_tau": (concordant - discordant, math.sqrt(_untied(loss) * _untied(severity))),
        "spearman_rho": (
            ranks[0] @ ranks[1],
            math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])),
        ),
    }
    return {name: float(top / bottom) for name, (top, bottom) in quotients.items() if bottom}


def _untied(values: np.ndarray) -> int:
    """How many comparisons are between unequal values."""
    counts = np.unique(values, return_counts=True)[1]
    return int((values.size * (values.size - 1) - (counts * (counts - 1)).sum()) // 2)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks less their mean; ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2 - values.size / 2)[inverse]


def _count_below(values: np.ndarray, lengths: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """For every query, how many of the first `length` values are below `limit`.

    A wavelet matrix (Claude, Navarro and Ordonez 2015): values become ranks, sorted stably by one
    bit after the other; each query follows its range through the bits, all queries at once.
    """
    ranked = np.sort(values)
    codes, limits = np.searchsorted(ranked, values), np.searchsorted(ranked, limits)
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
    loss, severity = loss.astype(np.float32), severity.astype(np.float32)
    # NaN is neither more nor less severe than anything, so what fills the last rows asks nothing.
    fill = (0, -loss.size % ROWS_AT_A_TIME)
    overall, within = _count_violated(
        np.pad(loss, fill),
        np.pad(severity, fill, constant_values=np.nan),
        np.pad(regime, fill),
        margin=margin,
    )
    within = np.asarray(within)[: loss.size]
    quotients = {"violated_margins": (np.asarray(overall).sum(), _untied(severity))}
    for index, name in enumerate(REGIMES):
        mine = regime == index
        quotients[f"violated_margins/{name}"] = (within[mine].sum(), _untied(severity[mine]))
    return {name: float(top / bottom) for name, (top, bottom) in quotients.items() if bottom}


@functools.partial(jax.jit, static_argnames="margin")
def _count_violated(
    losses: jax.Array, severities: jax.Array, regimes: jax.Array, *, margin: Margin
) -> tuple[jax.Array, jax.Array]:
    """Violated margins of each pair against milder ones: all of them, and those of its regime."""

    def count(rows: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        loss, severity, regime = (x[:, None] for x in rows)
        milder_loss, milder, milder_regime = (x[None] for x in (losses, severities, regimes))
        asked = margin(jnp.maximum(severity, milder), jnp.minimum(severity, milder))
        size = abs(loss) + abs(milder_loss) + abs(severity) + abs(milder)
        # In this form NaN and infinite losses do not keep a margin.
        is_kept = loss - milder_loss + float(jnp.finfo(jnp.float32).eps) * size >= asked
        violated = (severity > milder) & ~is_kept
        return violated.sum(axis=1), (violated & (regime == milder_regime)).sum(axis=1)

    rows = tuple(x.reshape(-1, ROWS_AT_A_TIME) for x in (losses, severities, regimes))
    overall, within = jax.lax.map(count, rows)
    return overall.reshape(-1), within.reshape(-1)
