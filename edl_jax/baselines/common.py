"""What the baseline losses share: their registry, labels of both kinds, checks of options."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edl_jax.errors import ConfigError
from edl_jax.frozen.inputs import FLOOR, check_inputs, log_softmax, pick
from edl_jax.registry import Registry

# A function of logits and labels, or an `nnx.Module` class whose instances are called like one.
LOSSES: Registry[Callable[..., Any]] = Registry("loss")

# Losses `[...]` of logits `[..., num_classes]`, classes `[...]` or weights `[..., num_classes]`,
# and a mask of the classes or None. Classes are last, and logits float32 at least.
OfLabel = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def per_example(
    of_label: OfLabel,
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> jax.Array:
    """A loss from its value for a class; for soft labels `w`, `sum_k w_k L(x, k)`.

    Args:
      of_label: `(logits, classes, mask) -> losses`, with the classes last.
      logits: as in `check_inputs`, like the other arguments.
      labels: integer or soft.
      axis: axis of the classes.
      where: mask of the classes.

    Returns:
      Losses `[...]` in the logits' dtype.
    """
    inputs = check_inputs(logits, labels, axis=axis, where=where)
    x, mask = inputs.logits, inputs.where

    def of_weights(weights: jax.Array) -> jax.Array:
        # What does not depend on the class is computed once, outside the loop that vmap makes.
        each = jax.vmap(lambda k: of_label(x, jnp.full(x.shape[:-1], k), mask), out_axes=-1)
        return jnp.sum(weights * each(jnp.arange(x.shape[-1])), axis=-1)

    losses = inputs.losses(lambda label: of_label(x, label, mask), of_weights)
    return losses.astype(jnp.asarray(logits).dtype)


def per_example_of_weights(
    of_weights: OfLabel,
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> jax.Array:
    """A loss that its authors define on label distributions: `L(x, w)`, one-hot for a class.

    Where a mask hides a part of a label, the rest is scaled to sum to 1 and the loss multiplied by
    what the rest summed to, so that masked classes add nothing here either.
    """
    inputs = check_inputs(logits, labels, axis=axis, where=where)
    x, mask = inputs.logits, inputs.where

    def of_soft(weights: jax.Array) -> jax.Array:
        if mask is None:
            return of_weights(x, weights, mask)
        total = jnp.sum(weights, axis=-1)
        safe = jnp.where(total > 0, total, 1.0)
        return total * of_weights(x, weights / safe[..., None], mask)

    losses = inputs.losses(lambda label: of_weights(x, one_hot(label, x), mask), of_soft)
    return losses.astype(jnp.asarray(logits).dtype)


def one_hot(labels: jax.Array, like: jax.Array) -> jax.Array:
    """Classes `[...]` as weights, of the shape and dtype of `like`, `[..., num_classes]`."""
    return jax.nn.one_hot(labels, like.shape[-1], dtype=like.dtype)


def mean_over_classes(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean `[...]` of `[..., num_classes]` over the classes that take part; 0 if none does."""
    if mask is None:
        return jnp.mean(values, axis=-1)
    return jnp.sum(values, axis=-1, where=mask) / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def strongest_rival(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The largest logit `[...]` of the classes other than the label."""
    return jnp.max(jnp.where(one_hot(labels, logits) > 0, FLOOR, logits), axis=-1)


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Refuse an option that is no number in `[low, high]`, or `(low, high]` if `open_low`.

    Arrays pass, traced or not: their values may not be known.

    Raises:
      ConfigError: naming the option, its value and the range.
    """
    if isinstance(value, jax.Array):
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan
    in_range = low < number <= high if open_low else low <= number <= high
    if not in_range or not math.isfinite(number):
        expected = f"more than {low}" if open_low else f"at least {low}"
        if math.isfinite(high):
            expected += f" and at most {high}"
        raise ConfigError(f"{name} is {value!r}; expected a finite number, {expected}.")


def check_count(name: str, value: Any, low: int, high: int) -> None:
    """Refuse an option that is no whole number in `[low, high]`.

    Raises:
      ConfigError: naming the option, its value and the range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"{name} is {value!r}; expected a whole number, at least {low} and at most {high}."
        )


def miss_probability(x: jax.Array, label: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`1 - p_y`, `[...]`, of logits `[..., num_classes]` and classes `[...]`."""
    return -jnp.expm1(pick(log_softmax(x, mask), label))
