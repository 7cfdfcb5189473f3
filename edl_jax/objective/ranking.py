"""Ranking consistency: the objective, and exact metrics (docs/method.md, section 3)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from edl_jax.objective.severity import Margin, check_shape
from edl_jax.pairs import REGIMES

MOST_PAIRS = 16_384  # for violated_margins, whose time grows with their square
ROWS_AT_A_TIME = 128  # compared with all pairs at once
TOLERANCE = 0.01  # of severities: pairwise accuracy leaves out pairs that differ by no more


def margin_violation(
    losses: jax.Array, severities: jax.Array, *, margin: Margin, num_opponents: int
) -> jax.Array:
    """How much of the margins that severity asks for a loss fails to keep: a scalar of at least 0.

    With e the severities, L the losses and `m = margin(e_i, e_j)`, it is the sum of
    `max(0, m - (L_i - L_j))` over the sum of m, over comparisons with `e_i > e_j`: 0 where every
    margin is kept, and 1 for a constant loss.

    Args:
      losses: `[num_pairs]`.
      severities: `[num_pairs]`, in random order: opponents are taken by position.
      margin: one of `MARGINS`, or any function of the worse and the better severity.
      num_opponents: how many others each pair meets, between 1 and `num_pairs - 1`.
    """
    chex.assert_equal_shape([losses, severities])
    # Slices of arrays that go once around: cheaper than rolling them for each opponent.
    around = [jnp.concatenate([x, x[:num_opponents]]) for x in (losses, severities)]
    violated = demanded = jnp.zeros((), losses.dtype)
    for shift in range(1, num_opponents + 1):
        other_losses, other_severities = (x[shift : shift + losses.size] for x in around)
        sign = jnp.sign(severities - other_severities)
        worse = jnp.maximum(severities, other_severities)
        least = jnp.asarray(margin(worse, jnp.minimum(severities, other_severities)))
        if least.ndim:  # one for all comparisons will do too
            check_shape("margin", margin, least, losses.shape)
        asked = jnp.where(sign == 0, 0.0, least)
        violated += jnp.sum(jax.nn.relu(asked - sign * (losses - other_losses)))
        demanded += jnp.sum(asked)
    return violated / jnp.maximum(demanded, jnp.finfo(demanded.dtype).tiny)


def by_regime(regimes: np.ndarray) -> dict[str, np.ndarray]:
    """Masks, by the suffix of a metric's name, of all pairs and of those of each regime."""
    masks = {f"/{name}": regimes == index for index, name in enumerate(REGIMES)}
    return {"": np.ones_like(regimes, bool), **masks}


def rank_metrics(
    losses: ArrayLike, severities: ArrayLike, regimes: ArrayLike, *, margin: Margin
) -> dict[str, float]:
    """Exact ranking metrics over all comparisons of the pairs with one another.

    `violated_margins`, of any margin, is O(n^2): of the first 16,384 pairs, and on the device.

    Args:
      losses: `[num_pairs]`, finite, in random order.
      severities: `[num_pairs]`, finite.
      regimes: `[num_pairs]` indices into `REGIMES`.
      margin: one of `MARGINS`, or any function of the worse and the better severity.

    Returns:
      Each over all pairs, and as `NAME/REGIME` among the pairs of one regime (where there is
      nothing to compare, the entry is left out):
      `pairwise_accuracy`: share of comparisons where the pair that is more severe by over 0.01 has
      the larger loss (a tie counts as wrong);
      `kendall_tau` (tau-b) and `spearman_rho`: as of SciPy;
      `violated_margins`: share of the comparisons of unequal severity, `e_i > e_j`, in which
      `L_i - L_j < margin(e_i, e_j)` by more than float32 rounding can cause.
    """
    loss, severity = np.asarray(losses, np.float64), np.asarray(severities, np.float64)
    regime = np.asarray(regimes)
    chex.assert_rank(loss, 1)
    chex.assert_equal_shape([loss, severity, regime])
    first = slice(MOST_PAIRS)
    compared = loss[first].astype(np.float32), severity[first].astype(np.float32), regime[first]
    counts = np.asarray(_comparisons(*compared, margin=margin))
    metrics = {}
    for suffix, mine in by_regime(regime).items():
        found = _order_metrics(loss[mine], severity[mine])
        violated, asked = counts[mine[first], int(suffix != "")].sum(axis=0)
        if asked:
            found["violated_margins"] = float(violated / asked)
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    return metrics


def _order_metrics(loss: np.ndarray, severity: np.ndarray) -> dict[str, float]:
    from scipy import stats  # takes a second

    metrics, order = {}, np.argsort(severity)
    loss, severity = loss[order], severity[order]
    milder = np.searchsorted(severity, severity - TOLERANCE)  # how many are, for each pair
    if compared := milder.sum():
        metrics["pairwise_accuracy"] = float(_count_below(loss, milder).sum() / compared)
    if loss.size and np.ptp(loss) and np.ptp(severity):
        metrics["kendall_tau"] = float(stats.kendalltau(loss, severity).statistic)  # pyright: ignore
        metrics["spearman_rho"] = float(stats.spearmanr(loss, severity).statistic)  # pyright: ignore
    return metrics


def _count_below(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """For every value, how many of the first `length` values are below it, in O(n log^2 n)."""
    size = len(values)
    ranks, below = np.searchsorted(np.sort(values), values), np.zeros_like(lengths)
    for bit in range(size.bit_length()):
        # The first `length` are whole blocks: one, of 2^bit values, for each bit of the length.
        # Ranks that grow by `size` from block to block make one sorted array of sorted blocks.
        whole = size >> bit
        blocks = np.sort(ranks[: whole << bit].reshape(whole, 1 << bit))
        ordered = (blocks + size * np.arange(whole)[:, None]).ravel()
        rows = np.flatnonzero(lengths >> bit & 1)
        block = lengths[rows] >> bit + 1 << 1
        below[rows] += np.searchsorted(ordered, ranks[rows] + size * block) - (block << bit)
    return below


@functools.partial(jax.jit, static_argnames="margin")
def _comparisons(
    losses: jax.Array, severities: jax.Array, regimes: jax.Array, *, margin: Margin
) -> jax.Array:
    """For each pair, in all and in its regime, the margins violated and asked for: `[n, 2, 2]`."""

    def count(pair: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        loss, severity, regime = pair
        milder = severities < severity
        asked = margin(jnp.maximum(severity, severities), jnp.minimum(severity, severities))
        size = abs(loss) + abs(losses) + abs(severity) + abs(severities)
        # What rounding can cause is allowed. In this form, NaN and infinity keep no margin.
        is_kept = loss - losses + float(jnp.finfo(jnp.float32).eps) * size >= asked
        # Two counts, each below 2^16, in one number: to sum it takes a third of the time.
        both = ((milder & ~is_kept).astype(jnp.int32) << 16) + milder.astype(jnp.int32)
        sums = jnp.stack([both.sum(), both.sum(where=regimes == regime)])
        return jnp.stack([sums >> 16, sums & 0xFFFF], axis=-1)

    return jax.lax.map(count, (losses, severities, regimes), batch_size=ROWS_AT_A_TIME)
