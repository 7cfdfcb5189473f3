"""How well a loss orders held-out pairs, and what its gradient does to the logits (design 1.3)."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from edl_jax.pairs import REGIMES, Pairs, log_probabilities
from edl_jax.ranking.severity import Severity

LogitLoss = Callable[[jax.Array, jax.Array], jax.Array]


def rank_metrics(
    losses: ArrayLike, severities: ArrayLike, regimes: ArrayLike, *, tolerance: float = 0.01
) -> dict[str, float]:
    """Exact ranking metrics over all comparisons of the pairs with one another.

    Counted in O(n log n) on the host, so 10^5 pairs (5 * 10^9 comparisons) take a fraction of a
    second.

    Args:
      losses: `[num_pairs]`, finite.
      severities: `[num_pairs]`, finite.
      regimes: `[num_pairs]` indices into `REGIMES`.
      tolerance: comparisons whose severities differ by no more than this are left out of the
        pairwise accuracy (not of Kendall's tau).

    Returns:
      `pairwise_accuracy`: share of comparisons where the more severe pair has the larger loss (a
      tie counts as wrong); `pairwise_accuracy/REGIME`: the same among the pairs of one regime (a
      regime with nothing to compare is left out); `kendall_tau`: Kendall's tau-b (Kendall 1945).
    """
    loss, severity, regime = (np.asarray(x) for x in (losses, severities, regimes))
    chex.assert_equal_shape([loss, severity, regime])
    metrics = {"pairwise_accuracy": _pairwise_accuracy(loss, severity, tolerance)}
    for index, name in enumerate(REGIMES):
        mine = regime == index
        metrics[f"pairwise_accuracy/{name}"] = _pairwise_accuracy(
            loss[mine], severity[mine], tolerance
        )
    metrics["kendall_tau"] = _kendall_tau(loss, severity)
    return {name: value for name, value in metrics.items() if value is not None}


def _pairwise_accuracy(loss: np.ndarray, severity: np.ndarray, tolerance: float) -> float | None:
    order = np.argsort(severity)
    loss, severity = loss[order], severity[order].astype(np.float64)
    milder = np.searchsorted(severity, severity - tolerance)  # so many pairs are decidedly milder
    decided = milder.sum()
    return float(_count_below(loss, milder, loss).sum() / decided) if decided else None


def _kendall_tau(loss: np.ndarray, severity: np.ndarray) -> float | None:
    order = np.argsort(severity)
    loss, severity = loss[order], severity[order]
    milder = np.searchsorted(severity, severity)
    concordant = _count_below(loss, milder, loss).sum()
    discordant = milder.sum() - _count_below(loss, milder, np.nextafter(loss, np.inf)).sum()
    comparisons = loss.size * (loss.size - 1) // 2
    untied = [
        comparisons - sum(int(n) * (int(n) - 1) // 2 for n in np.unique(x, return_counts=True)[1])
        for x in (loss, severity)
    ]
    return (
        float((concordant - discordant) / math.sqrt(untied[0] * untied[1])) if all(untied) else None
    )


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


def gradient_metrics(
    logit_loss: LogitLoss, pairs: Pairs, severity: Severity, *, num_bins: int = 10
) -> dict[str, float]:
    """What descent on the logits does, on average over the pairs.

    Args:
      logit_loss: from logits `[num_pairs, num_classes]` and labels `[num_pairs]` to losses,
        `[num_pairs]`.
      pairs: the pairs to measure on.
      severity: one of `SEVERITIES`.
      num_bins: how many equal bins of the true class's probability.

    Returns:
      `descent_rate`: share of pairs where an infinitesimal descent step on the logits lowers the
      severity; `gradient_ratio`: mean norm of the logit gradient over that of cross-entropy,
      `|p - onehot(y)|`; `gradient_ratio/LOW-HIGH`: the same where the true class's probability is
      in that bin (an empty bin is left out).
    """

    @jax.jit
    def measure(pairs: Pairs) -> tuple[jax.Array, ...]:
        logits = log_probabilities(pairs.probabilities)
        gradient = jax.grad(lambda x: logit_loss(x, pairs.labels).sum())(logits)

        def severity_of(x: jax.Array) -> jax.Array:
            return severity(jax.nn.log_softmax(x), pairs.labels)

        _, change = jax.jvp(severity_of, (logits,), (-gradient,))
        one_hot = jax.nn.one_hot(pairs.labels, logits.shape[-1])
        reference = jnp.linalg.norm(pairs.probabilities - one_hot, axis=-1)
        own = jnp.take_along_axis(pairs.probabilities, pairs.labels[:, None], axis=-1)[:, 0]
        return change < 0, jnp.linalg.norm(gradient, axis=-1), reference, own

    lowers, norms, reference, own = (np.asarray(x) for x in measure(pairs))
    metrics = {
        "descent_rate": lowers.mean(),
        "gradient_ratio": norms.mean() / reference.mean(),
    }
    bins = np.clip((own * num_bins).astype(int), 0, num_bins - 1)
    for index in range(num_bins):
        if (mine := bins == index).any():
            name = f"gradient_ratio/{index / num_bins:.1f}-{(index + 1) / num_bins:.1f}"
            metrics[name] = norms[mine].mean() / reference[mine].mean()
    return {name: float(value) for name, value in metrics.items()}
