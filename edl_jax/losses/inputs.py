"""What every loss on logits checks and prepares, so that all take and refuse the same inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import InputError
from edl_jax.losses.labels import check_label_values
from edl_jax.losses.log_probabilities import pick

ArrayLike = jax.typing.ArrayLike


class Inputs(NamedTuple):
    """Checked inputs of a loss, with the classes along the last axis.

    Attributes:
      logits: `[..., num_classes]`, float32 at least; 0 where masked, whatever was there.
      labels: classes `[...]`, integers of 32 bits at least; or soft labels `[..., num_classes]`.
      where: mask of the classes, `[..., num_classes]`, or None.
      dtype: that of the logits as they were given.
    """

    logits: jax.Array
    labels: jax.Array
    where: jax.Array | None
    dtype: jax.typing.DTypeLike

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
          Losses in the logits' dtype; 0 where the label is a masked class or no class takes part;
          else NaN where the label is out of range, or has a part that is not finite.
        """
        if self.labels.ndim == self.logits.ndim:
            weights = self.labels.astype(self.logits.dtype)
            if self.where is not None:
                weights = jnp.where(self.where, weights, 0)
            # An infinite weight on a loss of 0, or on one that saturates, would go unnoticed.
            is_finite = jnp.isfinite(jnp.sum(weights, axis=-1))
            return jnp.where(is_finite, of_weights(weights), jnp.nan).astype(self.dtype)
        in_range = (self.labels >= 0) & (self.labels < self.logits.shape[-1])
        index = jnp.where(in_range, self.labels, 0).astype(jnp.int32)
        losses = jnp.where(in_range, of_label(index), jnp.nan)
        if self.where is not None:
            counts = jnp.where(in_range, pick(self.where, index), jnp.any(self.where, axis=-1))
            losses = jnp.where(counts, losses, 0.0)
        return losses.astype(self.dtype)


def check_inputs(
    logits: ArrayLike, labels: ArrayLike, axis: int, where: ArrayLike | None
) -> Inputs:
    """Check the arguments of a loss (`EvolvedLoss.__call__` says which) and move the classes last.

    Values of labels are checked where they are known: not in a trace, and not of arrays that other
    processes hold too.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
    """
    given_labels, given_where = labels, where
    logits, labels = _as_array("logits", logits), _as_array("labels", labels)
    shape, dtype = logits.shape, logits.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"logits have dtype {dtype}; expected a floating dtype.")
    if not isinstance(axis, int | np.integer) or not -logits.ndim <= axis < logits.ndim:
        raise InputError(f"axis is {axis!r}; expected an axis of logits of shape {shape}.")
    batch = tuple(np.delete(shape, axis).tolist())
    is_soft = labels.shape == shape and not jnp.issubdtype(labels.dtype, jnp.complexfloating)
    is_hard = labels.shape == batch and jnp.issubdtype(labels.dtype, jnp.integer)
    if not is_soft and not is_hard:
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; for logits of shape "
            f"{shape} with classes along axis {axis}, expected integers of shape {batch} or "
            f"soft labels of shape {shape}."
        )
    if shape[axis] < 2:
        raise InputError(f"logits have shape {shape}; expected at least 2 classes.")
    mask = None if where is None else _mask(where, shape, batch, axis)
    check_label_values(given_labels, given_where, shape, axis, is_soft=is_soft)
    if is_soft:
        labels = jnp.moveaxis(labels, axis, -1)
    elif jnp.iinfo(labels.dtype).bits < 32:  # a class count of 256, say, would be 0
        labels = labels.astype(jnp.int32)
    logits = jnp.moveaxis(logits, axis, -1)
    # Not by promotion, which has no answer for the dtypes of 8 bits and fewer.
    if jnp.finfo(dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    if mask is not None:  # at the source: what is masked may be NaN, and NaN times 0 is NaN
        logits = jnp.where(mask, logits, 0)
    return Inputs(logits, labels, mask, dtype)


def _as_array(name: str, value: ArrayLike) -> jax.Array:
    try:
        return jnp.asarray(value)
    except jax.errors.JaxRuntimeError:  # such as too little memory
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last is PyTorch's
        raise InputError(f"{name} is {value!r}; expected an array of numbers.") from error


def _mask(where: ArrayLike, shape: tuple[int, ...], batch: tuple[int, ...], axis: int) -> jax.Array:
    """A mask of the classes or the examples as one of the logits, the classes last.

    The rank alone tells the two apart, as in optax: sizes may agree by chance.
    """
    where = _as_array("where", where)
    whole = jnp.expand_dims(where, axis) if where.ndim == len(batch) else where
    fits = whole.ndim == len(shape) and all(
        size in (1, full) for size, full in zip(whole.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"where has shape {where.shape}; for logits of shape {shape} with classes along axis "
            f"{axis}, expected a mask of the examples, of shape {batch}, or a mask of the logits, "
            f"of shape {shape}, in which any size may be 1. Write a mask of the classes with an "
            "axis of size 1 for each axis of the examples, such as where[None, :]."
        )
    if where.dtype != bool:  # weights, say, or what is to be added to logits: 0 and -inf
        raise InputError(
            f"where has dtype {where.dtype}; expected a mask of True and False, such as "
            "weights > 0. To weight examples, multiply their losses."
        )
    return jnp.moveaxis(jnp.broadcast_to(whole, shape), axis, -1)
