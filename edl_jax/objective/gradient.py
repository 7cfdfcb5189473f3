"""What a loss's gradient does to the logits: what ordering leaves free (method.md, section 3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.objective.severity import Severity, apply_severity
from edl_jax.pairs import REGIMES, Pairs, log_probabilities

LogitLoss = Callable[[jax.Array, jax.Array], jax.Array]


class GradientSample(NamedTuple):
    """A loss's logit gradient on each of some pairs.

    Attributes:
      lowers: whether an infinitesimal descent step lowers the severity, `[num_pairs]` bool.
      norms: Euclidean norm of the gradient, `[num_pairs]`.
      reference_norms: the same of cross-entropy's, `|p - onehot(y)|`, `[num_pairs]`.
      true_probabilities: `p_y`, `[num_pairs]`.
      regimes: index into `REGIMES`, `[num_pairs]` int32.
    """

    lowers: jax.Array
    norms: jax.Array
    reference_norms: jax.Array
    true_probabilities: jax.Array
    regimes: jax.Array


def gradient_norms(logit_loss: LogitLoss, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """Norms of a loss's logit gradient and of cross-entropy's, `|p - onehot(y)|`.

    Args:
      logit_loss: as of `logit_gradients`.
      pairs: the pairs to measure on.

    Returns:
      `[num_pairs]` each.
    """
    gradient = _logit_gradient(logit_loss, pairs)
    return jnp.linalg.norm(gradient, axis=-1), _reference_norms(pairs)


def _logit_gradient(logit_loss: LogitLoss, pairs: Pairs) -> jax.Array:
    logits = log_probabilities(pairs.probabilities)
    return jax.grad(lambda x: logit_loss(x, pairs.labels).sum())(logits)


def _reference_norms(pairs: Pairs) -> jax.Array:
    probabilities = pairs.probabilities
    one_hot = jax.nn.one_hot(pairs.labels, probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.linalg.norm(probabilities - one_hot, axis=-1)


def logit_gradients(logit_loss: LogitLoss, pairs: Pairs, severity: Severity) -> GradientSample:
    """Measure a loss's gradient with respect to the logits, pair by pair.

    Pure and not jitted, so that one program serves a loss whose parameters change:
    `jax.jit(lambda params, pairs: logit_gradients(partial(loss, params), pairs, severity))`.

    Args:
      logit_loss: from logits `[num_pairs, num_classes]` and labels `[num_pairs]` to losses,
        `[num_pairs]`.
      pairs: the pairs to measure on.
      severity: one of `SEVERITIES`, or any such function.

    Raises:
      InputError: if the severity does not give one value for each pair.
    """
    logits = log_probabilities(pairs.probabilities)
    gradient = _logit_gradient(logit_loss, pairs)

    def severity_of(x: jax.Array) -> jax.Array:
        return apply_severity(severity, jax.nn.log_softmax(x), pairs.labels)

    _, change = jax.jvp(severity_of, (logits,), (-gradient,))
    own = jnp.take_along_axis(pairs.probabilities, pairs.labels[:, None], axis=-1)[:, 0]
    return GradientSample(
        lowers=change < 0,
        norms=jnp.linalg.norm(gradient, axis=-1),
        reference_norms=_reference_norms(pairs),
        true_probabilities=own,
        regimes=pairs.regimes,
    )


def gradient_metrics(sample: GradientSample, *, num_bins: int = 10) -> dict[str, float]:
    """What descent on the logits does, on average over the pairs; on the host.

    Args:
      sample: from `logit_gradients`.
      num_bins: how many equal bins of the true class's probability.

    Returns:
      `descent_rate`: share of pairs where an infinitesimal descent step on the logits lowers the
      severity; `gradient_ratio`: mean norm of the logit gradient over that of cross-entropy; both
      also as `NAME/REGIME`, and `gradient_ratio/LOW-HIGH` where the true class's probability is in
      that bin. Pairs without a cross-entropy gradient, whose probability rounds to 1, count in
      none, and what has no others is left out.
    """
    lowers, norms, reference, own, regimes = (np.asarray(x) for x in sample)
    counts = reference > 0
    rate_groups = {"": counts}
    rate_groups |= {f"/{name}": counts & (regimes == index) for index, name in enumerate(REGIMES)}
    bins = np.clip((own * num_bins).astype(int), 0, num_bins - 1)
    digits = max(1, len(f"{1 / num_bins:g}") - len("0."))  # enough to keep the bins' names apart
    ratio_groups = rate_groups | {
        f"/{index / num_bins:.{digits}f}-{(index + 1) / num_bins:.{digits}f}": counts
        & (bins == index)
        for index in range(num_bins)
    }
    metrics = {
        f"descent_rate{suffix}": float(lowers[mine].mean())
        for suffix, mine in rate_groups.items()
        if mine.any()
    }
    for suffix, mine in ratio_groups.items():
        if total := reference[mine].sum(dtype=np.float64):
            metrics[f"gradient_ratio{suffix}"] = float(norms[mine].sum(dtype=np.float64) / total)
    return metrics
