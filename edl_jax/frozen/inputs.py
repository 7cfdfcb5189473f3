"""What every loss on logits checks and prepares, so that all take and refuse the same inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from edl_jax.errors import InputError

# Log-probabilities stay above this, and masked classes get it: its exponential is 0, and sums,
# products and networks of it are finite in float32.
FLOOR = -1e9


class Inputs(NamedTuple):
    """Checked inputs of a loss, with the classes along the last axis.

    Attributes:
      logits: `[..., num_classes]`, float32 at least.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
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
          Losses; 0 where the label is a masked class, NaN where it is out of range.
        """
        if self.labels.ndim == self.logits.ndim:
            weights = self.labels.astype(self.logits.dtype)
            return of_weights(weights if self.where is None else jnp.where(self.where, weights, 0))
        num_classes = self.logits.shape[-1]
        in_range = (self.labels >= 0) & (self.labels < num_classes)
        index = jnp.clip(self.labels, 0, num_classes - 1)
        losses = jnp.where(in_range, of_label(index), jnp.nan)
        if self.where is None:
            return losses
        return jnp.where(pick(self.where, index) | ~in_range, losses, 0.0)


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
        `[..., num_classes]`, non-negative and summing to 1.
      axis: the axis of the classes.
      where: mask of the classes, broadcastable to the logits.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
    """
    given = labels
    logits, labels = as_array("logits", logits), as_array("labels", labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"logits have dtype {logits.dtype}; expected a floating dtype.")
    if not isinstance(axis, int | np.integer) or not -logits.ndim <= axis < logits.ndim:
        raise InputError(f"axis is {axis!r}; expected an axis of logits of shape {logits.shape}.")
    if _is_soft(logits.shape, labels, given, axis):
        labels = jnp.moveaxis(labels, axis, -1)
    else:  # a class count of 256, say, would be 0 in a narrow dtype
        labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    if where is not None:
        where = classes_last("where", where, logits.shape, axis).astype(bool)
    if logits.shape[axis] < 2:
        raise InputError(f"logits have shape {logits.shape}; expected at least 2 classes.")
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return Inputs(jnp.moveaxis(logits, axis, -1).astype(dtype), labels, where)


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


def stable_logits(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """The logits `[..., num_classes]` moved so that the largest is 0 and none is below `FLOOR`.

    Differences of finite logits can overflow; those of these cannot.
    """
    if where is not None:
        logits = jnp.where(where, logits, jnp.finfo(logits.dtype).min)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    logits = jnp.maximum(logits - top, FLOOR)
    return logits if where is None else jnp.where(where, logits, FLOOR)


def log_softmax(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """Log-probabilities of at least `FLOOR`, `[..., num_classes]`; masked classes get `FLOOR`."""
    log_p = jnp.maximum(jax.nn.log_softmax(stable_logits(logits, where), axis=-1), FLOOR)
    return log_p if where is None else jnp.where(where, log_p, FLOOR)


def pick(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The values `[...]` of classes `[...]` among `[..., num_classes]`."""
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def _is_soft(
    shape: tuple[int, ...], labels: jax.Array, given: jax.typing.ArrayLike, axis: int
) -> bool:
    """Whether labels are a distribution over the classes; refuse labels that are neither kind.

    The range is checked on the labels as given: of 64 bits, JAX may have kept 32.
    """
    batch_shape = tuple(size for index, size in enumerate(shape) if index != axis % len(shape))
    if labels.shape == shape and not jnp.issubdtype(labels.dtype, jnp.complexfloating):
        return True
    if labels.shape != batch_shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; for logits of shape "
            f"{shape} with classes along axis {axis}, expected integers of shape {batch_shape} or "
            f"soft labels of shape {shape}."
        )
    if not isinstance(labels, Tracer) and labels.size:
        values = np.asarray(given)  # NumPy, so that a constant is checked inside a trace too
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= shape[axis]:
            raise InputError(
                f"labels range from {low} to {high}; expected classes in [0, {shape[axis]}), the "
                "logits' class count."
            )
    return False
