"""What a loss's gradient does to the logits: what ordering leaves free (method.md, section 3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.objective.severity import Severity, apply_severity
from edl_jax.pairs import REGIMES, Pairs, log_probabilities

# From logits `[num_pairs, num_classes]` and labels `[num_pairs]` to losses `[num_pairs]`.
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
    """Norms `[num_pairs]` of a loss's logit gradient and of cross-entropy's, `|p - onehot(y)|`."""
    norms = jnp.linalg.norm(_logit_gradient(logit_loss, pairs), axis=-1)
    return norms, _reference_norms(pairs)


def _logit_gradient(logit_loss: LogitLoss, pairs: Pairs) -> jax.Array:
    logits = log_probabilities(pairs.probabilities)
    return jax.grad(lambda x: logit_loss(x, pairs.labels).sum())(logits)


def _reference_norms(pairs: Pairs) -> jax.Array:
    probabilities = pairs.probabilities
    one_hot = jax.nn.one_hot(pairs.labels, probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.linalg.norm(probabilities - one_hot, axis=-1)


def logit_gradients(logit_loss: LogitLoss, pairs: Pairs, severity: Severity) -> GradientSample:
    """Measure a loss's gradient with respect to the logits, pair by pair; pure and not jitted.

    Raises:
      InputError: if the severity does not give one value for each pair.
    """
    logits = log_probabilities(pairs.probabilities)
    gradient = _logit_gradient(logit_loss, pairs)

    def severity_of(x: jax.Array) -> jax.Array:
        return apply_severity(severity, jax.nn.log_softmax(x), pairs.labels)

    _, change = jax.jvp(severity_of, (logits,), (-gradient,))
    own = jnp.take_along_axis(pairs.probabilities, pairs.labels[:, None], axis=-1)[:, 0]
    norms = jnp.linalg.norm(gradient, axis=-1)
    return GradientSample(change < 0, norms, _reference_norms(pairs), own, pairs.regimes)


def gradient_metrics(sample: GradientSample) -> dict[str, float]:
    """What descent on the logits does, on average over the pairs; on the host.

    Returns:
      `descent_rate`: share of pairs where an infinitesimal descent step on the logits lowers the
      severity; `gradient_ratio`: mean norm of the logit gradient over that of cross-entropy; both
      also as `NAME/REGIME`, and the ratio as `gradient_ratio/0.0-0.1` to `gradient_ratio/0.9-1.0`
      where the true class's probability is in that bin. Pairs without a cross-entropy gradient,
      whose probability rounds to 1, count in none, and what has no others is left out.
    """
    lowers, norms, reference, own, regimes = map(np.asarray, sample)
    counts = reference > 0
    groups = {"": counts}
    groups |= {f"/{name}": counts & (regimes == index) for index, name in enumerate(REGIMES)}
    metrics = {
        f"descent_rate{suffix}": float(lowers[mine].mean())
        for suffix, mine in groups.items()
        if mine.any()
    }
    bins = np.clip((own * 10).astype(int), 0, 9)
    groups |= {f"/{x / 10:.1f}-{(x + 1) / 10:.1f}": counts & (bins == x) for x in range(10)}
    for suffix, mine in groups.items():
        if total := reference[mine].sum(dtype=np.float64):
            metrics[f"gradient_ratio{suffix}"] = float(norms[mine].sum(dtype=np.float64) / total)
    return metrics
