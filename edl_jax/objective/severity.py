"""Severities (how wrong a pair is) and margins (how far apart two losses must be).

The paper asks for a ranking by severity; which severity it used is not known, so these are ours.
A severity maps log-probabilities `[..., num_classes]` and labels `[...]` to `[...]`, larger being
worse. A margin maps the severities of the worse and the better pair, elementwise, to the least
difference that their losses must have. Both are traced by JAX.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from edl_jax.errors import InputError
from edl_jax.registry import Registry

Severity = Callable[[jax.Array, jax.Array], jax.Array]
Margin = Callable[[jax.Array, jax.Array], jax.Array]

SEVERITIES: Registry[Severity] = Registry("severity")
MARGINS: Registry[Margin] = Registry("margin")


@SEVERITIES.register("surprisal")
def surprisal(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """`-log p_y`, in nats."""
    return -_of_label(log_probabilities, labels)


@SEVERITIES.register("miss_probability")
def miss_probability(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """`1 - p_y`, in [0, 1]."""
    return -jnp.expm1(_of_label(log_probabilities, labels))


@SEVERITIES.register("brier")
def brier(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """The Brier score `sum_j (p_j - [j = y])^2`, in [0, 2] (Brier 1950)."""
    probabilities = jnp.exp(log_probabilities)
    one_hot = jax.nn.one_hot(labels, log_probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.sum((probabilities - one_hot) ** 2, axis=-1)


@SEVERITIES.register("smoothed_surprisal")
def smoothed_surprisal(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy against a smoothed target, in nats: over-confidence counts as an error too.

    With K classes, `-0.9 log p_y - (0.1 / K) sum_j log p_j`; least where `p` is the smoothed target
    itself (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567).
    """
    everywhere = -jnp.mean(log_probabilities, axis=-1)
    return 0.9 * surprisal(log_probabilities, labels) + 0.1 * everywhere


@SEVERITIES.register("generalised_surprisal")
def generalised_surprisal(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """`(1 - p_y^q) / q` with `q = 0.7`: between surprisal (`q -> 0`) and `1 - p_y` (`q = 1`).

    It saturates, so that the worst pairs do not outweigh all others (Zhang and Sabuncu 2018,
    https://arxiv.org/abs/1805.07836).
    """
    return -jnp.expm1(0.7 * _of_label(log_probabilities, labels)) / 0.7


@MARGINS.register("proportional")
def proportional(worse: jax.Array, better: jax.Array) -> jax.Array:
    """The severity difference itself: the margin sets the loss's slope, not its order alone."""
    return worse - better


@MARGINS.register("constant")
def constant(worse: jax.Array, better: jax.Array) -> jax.Array:
    """0.1 whatever the severities: order alone, the slope is left free."""
    return jnp.full_like(worse - better, 0.1)


def apply_severity(severity: Severity, log_p: jax.Array, labels: jax.Array) -> jax.Array:
    """The severities `[...]` of pairs, in their dtype; refuses what is not one for each pair."""
    values = jnp.asarray(severity(log_p, labels))
    check_shape("severity", severity, values, labels.shape)
    return values.astype(log_p.dtype)


def check_shape(kind: str, part: object, values: jax.Array, shape: tuple[int, ...]) -> None:
    """Refuse what a severity or a margin gave if it is not one value for each pair."""
    if values.shape != shape:
        raise InputError(
            f"{kind} {getattr(part, '__name__', part)} gave shape {values.shape} for pairs of "
            f"shape {shape}; expected one value for each pair, such as a reduction over axis=-1."
        )


def _of_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]
