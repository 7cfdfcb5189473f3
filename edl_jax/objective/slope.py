"""What ordering leaves free, in terms that evolution can minimise: the slope training feels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.objective.gradient import LogitLoss
from edl_jax.objective.severity import Severity, apply_severity
from edl_jax.pairs import Pairs, log_probabilities


class SlopeViolations(NamedTuple):
    """How far the slope of a loss is from one that trains well; scalars of at least 0, 0 is best.

    Attributes:
      descent: mean over the pairs of `max(0, -cos)` of the angle between the logit gradients of the
        loss and of the severity: 0 where a descent step on the logits lowers the severity, 1 where
        it goes straight up.
      norm: how far the gradient is longer than twice, or shorter than half of cross-entropy's,
        `max(0, |log r| - log 2)` with `r` the ratio of the two norms, scaled to a mean of 1 as
        calibration does; the mean over the pairs, each weighted by cross-entropy's norm.
      convexity: share of the loss's curvature along the true class's logit that is negative,
        `sum max(0, -L'') / sum |L''|`.
    """

    descent: jax.Array
    norm: jax.Array
    convexity: jax.Array


def slope_violations(logit_loss: LogitLoss, pairs: Pairs, severity: Severity) -> SlopeViolations:
    """Measure the slope of a loss on pairs; the loss's scale does not matter."""
    logits = log_probabilities(pairs.probabilities)
    tiny = jnp.finfo(logits.dtype).tiny
    one_hot = jax.nn.one_hot(pairs.labels, logits.shape[-1], dtype=logits.dtype)
    gradient_of = jax.grad(lambda x: jnp.sum(logit_loss(x, pairs.labels)))
    gradient, along = jax.jvp(gradient_of, (logits,), (one_hot,))
    upwards = jax.grad(
        lambda x: jnp.sum(apply_severity(severity, jax.nn.log_softmax(x), pairs.labels))
    )(logits)
    norm, length = (jnp.linalg.norm(x, axis=-1) for x in (gradient, upwards))
    cosine = jnp.sum(
        (gradient / jnp.maximum(norm, tiny)[:, None])
        * (upwards / jnp.maximum(length, tiny)[:, None]),
        axis=-1,
    )

    reference = jnp.linalg.norm(pairs.probabilities - one_hot, axis=-1)
    scaled = norm / jnp.maximum(jnp.sum(norm), tiny) * jnp.sum(reference)
    ratio = jnp.maximum(scaled, 1e-6) / jnp.maximum(reference, 1e-6)  # at most e^14 of a flat loss
    beyond = jax.nn.relu(jnp.abs(jnp.log(ratio)) - jnp.log(2.0))
    curvature = jnp.sum(along * one_hot, axis=-1)
    return SlopeViolations(
        descent=jnp.mean(jnp.clip(-cosine, 0, 1)),
        norm=jnp.sum(reference * beyond) / jnp.maximum(jnp.sum(reference), tiny),
        convexity=jnp.sum(jax.nn.relu(-curvature)) / jnp.maximum(jnp.sum(jnp.abs(curvature)), tiny),
    )
