"""What the baseline losses share: their registry, labels of both kinds, checks of options."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.errors import ConfigError
from edl_jax.losses.inputs import check_inputs
from edl_jax.losses.log_probabilities import log_softmax
from edl_jax.networks.runner_up import Rivals
from edl_jax.registry import Registry

# A function of logits and labels, or an `nnx.Module` class whose instances are called like one.
LOSSES: Registry[Callable[..., Any]] = Registry("loss")


class Candidates(NamedTuple):
    """A prediction, and the classes that stand as its label: the label alone, or each in turn.

    A loss is one formula of this, `[..., n]`: with `n = 1` for classes, and with `n = num_classes`
    for soft labels, whose cost is so that of a few more sums over the classes. What does not
    depend on the label is `[..., 1]`.

    Attributes:
      logits: `[..., num_classes]`, float32 at least, 0 where masked.
      every_log_p: log-probabilities of all classes, `[..., num_classes]`.
      where: mask of the classes, `[..., num_classes]`, or None.
      label: `[..., 1]`, or None for every class in turn.
    """

    logits: jax.Array
    every_log_p: jax.Array
    where: jax.Array | None
    label: jax.Array | None

    def at(self, values: jax.Array) -> jax.Array:
        """The candidates' `[..., n]` of values `[..., num_classes]`."""
        return values if self.label is None else jnp.take_along_axis(values, self.label, axis=-1)

    def log_p(self) -> jax.Array:
        """`log p_y`, `[..., n]`."""
        return self.at(self.every_log_p)

    def miss(self) -> jax.Array:
        """`1 - p_y`, `[..., n]`."""
        return -jnp.expm1(self.log_p())

    def rival(self) -> jax.Array:
        """The largest `log p` of the classes other than the label, `[..., n]`."""
        label, shape = self.label, self.every_log_p.shape
        if label is None:
            label = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        return Rivals.among(self.every_log_p).of(label, self.log_p())


def per_example(
    formula: Callable[[Candidates], jax.Array],
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> jax.Array:
    """A loss from its value for a class; for soft labels `w`, `sum_k w_k L(x, k)`.

    Args:
      formula: losses `[..., n]` of candidates.
      logits: as in `check_inputs`, like the other arguments.
      labels: integer or soft.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses `[...]` in the logits' dtype.
    """
    inputs = check_inputs(logits, labels, axis=axis, where=where)
    every = Candidates(inputs.logits, log_softmax(inputs.logits, inputs.where), inputs.where, None)
    losses = inputs.losses(
        lambda label: formula(every._replace(label=label[..., None]))[..., 0],
        lambda weights: jnp.sum(weights * formula(every), axis=-1),
    )
    return losses.astype(jnp.asarray(logits).dtype)


def per_example_of_weights(
    of_weights: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array],
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> jax.Array:
    """A loss that its authors define on label distributions: `L(x, w)`, one-hot for a class.

    `of_weights` takes logits and weights, `[..., num_classes]`, and a mask of that shape or None.
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
    """Mean `[..., 1]` of `[..., num_classes]` over the classes that take part; 0 if none does."""
    if mask is None:
        return jnp.mean(values, axis=-1, keepdims=True)
    return jnp.sum(values, axis=-1, where=mask, keepdims=True) / num_taking_part(values, mask)


def num_taking_part(values: jax.Array, mask: jax.Array | None) -> jax.Array | int:
    """The number of classes that take part, at least 1: `[..., 1]`, or a number without a mask."""
    if mask is None:
        return values.shape[-1]
    return jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(values.dtype)


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
