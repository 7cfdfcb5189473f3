"""What every loss on logits checks and prepares, so that all take and refuse the same inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import InputError
from edl_jax.losses.labels import check_label_values
from edl_jax.losses.log_probabilities import pick


class Inputs(NamedTuple):
    """Checked inputs of a loss, with the classes along the last axis.

    Attributes:
      logits: `[..., num_classes]`, float32 at least; 0 where masked, whatever was there.
      labels: classes `[...]`, integers of 32 bits at least; or soft labels `[..., num_classes]`.
      where: mask of the classes, `[..., num_classes]`, or None.
    """

    logits: jax.Array
    labels: jax.Array
    where: jax.Array | None

    def losses(
        self,
        of_label: Callable[[jax.Array], jax.Array],
        of_weights: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        """The loss of each example, `[...]`, by the kind of its labels.

        Args:
          of_label: losses `[...]` of classes `[...]` in `[0, num_classes)`.
          of_weights: losses `[...]` of soft labels `[..., num_classes]`, 0 on masked classes.

        Returns:
          Losses; 0 where the label is a masked class or no class takes part; else NaN where the
          label is out of range, or has a part that is not finite.
        """
        if self.labels.ndim == self.logits.ndim:
            weights = self.labels.astype(self.logits.dtype)
            if self.where is not None:
                weights = jnp.where(self.where, weights, 0)
            # An infinite weight on a loss of 0, or on one that saturates, would go unnoticed.
            is_finite = jnp.isfinite(jnp.sum(weights, axis=-1))
            return jnp.where(is_finite, of_weights(weights), jnp.nan)
        in_range = (self.labels >= 0) & (self.labels < self.logits.shape[-1])
        index = jnp.where(in_range, self.labels, 0).astype(jnp.int32)
        losses = jnp.where(in_range, of_label(index), jnp.nan)
        if self.where is None:
            return losses
        counts = jnp.where(in_range, pick(self.where, index), jnp.any(self.where, axis=-1))
        return jnp.where(counts, losses, 0.0)


def check_inputs(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    axis: int,
    where: jax.typing.ArrayLike | None,
) -> Inputs:
    """Check the arguments of a loss and move the classes to the last axis.

    Args:
      logits: unnormalised log-probabilities, `[..., num_classes]`, any floating dtype.
      labels: classes, `[...]` integers in `[0, num_classes)`; or soft or one-hot labels,
        `[..., num_classes]`, non-negative and summing to 1. Values are checked where they are
        known: not in a trace, and not of arrays that other processes hold too.
      axis: the axis of the classes.
      where: mask of the classes, of the logits' rank, each size the logits' or 1; or mask of the
        examples, of one rank less, each size the batch's or 1.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
    """
    given_labels, given_where = labels, where
    logits, labels = as_array("logits", logits), as_array("labels", labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"logits have dtype {logits.dtype}; expected a floating dtype.")
    if not isinstance(axis, int | np.integer) or not -logits.ndim <= axis < logits.ndim:
        raise InputError(f"axis is {axis!r}; expected an axis of logits of shape {logits.shape}.")
    is_soft = _is_soft(logits.shape, labels, axis)
    if logits.shape[axis] < 2:
        raise InputError(f"logits have shape {logits.shape}; expected at least 2 classes.")
    mask = None if where is None else _mask(where, logits.shape, axis)
    check_label_values(given_labels, given_where, logits.shape, axis, is_soft=is_soft)
    if is_soft:
        labels = jnp.moveaxis(labels, axis, -1)
    elif jnp.iinfo(labels.dtype).bits < 32:  # a class count of 256, say, would be 0
        labels = labels.astype(jnp.int32)
    logits = jnp.moveaxis(logits, axis, -1)
    # Not by promotion, which has no answer for the dtypes of 8 bits and fewer.
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    if mask is not None:  # at the source: what is masked may be NaN, and NaN times 0 is NaN
        logits = jnp.where(mask, logits, 0)
    return Inputs(logits, labels, mask)


def as_array(name: str, value: jax.typing.ArrayLike) -> jax.Array:
    """An argument as an array of numbers.

    Raises:
      InputError: if it is none, naming it as `name`.
    """
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is {value!r}; expected an array of numbers.") from error


def classes_last(
    name: str, value: jax.typing.ArrayLike, shape: tuple[int, ...], axis: int
) -> jax.Array:
    """Broadcast a companion of the logits to their shape, and move the classes to the last axis.

    Raises:
      InputError: if it does not broadcast, naming it as `name`.
    """
    value = as_array(name, value)
    try:
        return jnp.moveaxis(jnp.broadcast_to(value, shape), axis, -1)
    except ValueError as error:
        raise InputError(
            f"{name} has shape {value.shape}; expected one that broadcasts to the logits' {shape}."
        ) from error


def _mask(where: jax.typing.ArrayLike, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A mask of the classes or the examples as one of the logits, the classes last.

    The rank alone tells the two apart, as in optax: sizes may agree by chance.
    """
    where = as_array("where", where).astype(bool)
    whole = jnp.expand_dims(where, axis) if where.ndim == len(shape) - 1 else where
    fits = whole.ndim == len(shape) and all(
        size in (1, full) for size, full in zip(whole.shape, shape, strict=True)
    )
    if not fits:
        batch = _batch_shape(shape, axis)
        raise InputError(
            f"where has shape {where.shape}; for logits of shape {shape} with classes along axis "
            f"{axis}, expected a mask of the examples, of shape {batch}, or a mask of the logits, "
            f"of shape {shape}, in which any size may be 1. Write a mask of the classes with an "
            "axis of size 1 for each axis of the examples, such as where[None, :]."
        )
    return jnp.moveaxis(jnp.broadcast_to(whole, shape), axis, -1)


def _is_soft(shape: tuple[int, ...], labels: jax.Array, axis: int) -> bool:
    """Whether labels are a distribution over the classes; refuse labels that are neither kind."""
    if labels.shape == shape and not jnp.issubdtype(labels.dtype, jnp.complexfloating):
        return True
    batch = _batch_shape(shape, axis)
    if labels.shape != batch or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; for logits of shape "
            f"{shape} with classes along axis {axis}, expected integers of shape {batch} or "
            f"soft labels of shape {shape}."
        )
    return False


def _batch_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size for index, size in enumerate(shape) if index != axis % len(shape))
