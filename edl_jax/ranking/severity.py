"""Severities (how wrong a pair is) and margins (how far apart two losses must be).

The paper asks for a ranking by severity; which severity it used is not known, so these are ours.
A severity maps log-probabilities `[..., num_classes]` and labels `[...]` to `[...]`, larger being
worse. A margin maps the severities of the worse and the better pair to the least difference that
their losses must have.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Severity = Callable[[jax.Array, jax.Array], jax.Array]
Margin = Callable[[jax.Array, jax.Array], jax.Array]


def surprisal(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """`-log p_y`, in nats."""
    return -_of_label(log_probabilities, labels)


def miss_probability(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """`1 - p_y`."""
    return -jnp.expm1(_of_label(log_probabilities, labels))


def rival_margin(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """`max_{j != y} p_j - p_y`, in [-1, 1]."""
    probabilities = jnp.exp(log_probabilities)
    is_label = jax.nn.one_hot(labels, log_probabilities.shape[-1], dtype=bool)
    rival = jnp.max(jnp.where(is_label, 0.0, probabilities), axis=-1)
    return rival - _of_label(probabilities, labels)


def brier(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """The Brier score `sum_j (p_j - [j = y])^2` (Brier 1950)."""
    probabilities = jnp.exp(log_probabilities)
    one_hot = jax.nn.one_hot(labels, log_probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.sum((probabilities - one_hot) ** 2, axis=-1)


SEVERITIES: dict[str, Severity] = {
    severity.__name__: severity for severity in (surprisal, miss_probability, rival_margin, brier)
}


def proportional(worse: jax.Array, better: jax.Array) -> jax.Array:
    """The severity difference itself: the margin sets the loss's slope, not its order alone."""
    return worse - better


def constant(worse: jax.Array, better: jax.Array) -> jax.Array:
    """0.1 whatever the severities: order alone, the slope is left free."""
    return jnp.full_like(worse - better, 0.1)


MARGINS: dict[str, Margin] = {margin.__name__: margin for margin in (proportional, constant)}


def _of_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]
