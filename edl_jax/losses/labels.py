"""Checks of the labels' values, where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from edl_jax.errors import InputError

# How far from 1 a soft label's sum may be: labels mixed in bfloat16 are 2^-8 off.
_TOLERANCE = 1e-2


def check_label_values(
    labels: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None,
    shape: tuple[int, ...],
    axis: int,
    *,
    is_soft: bool,
) -> None:
    """Refuse classes out of range, and soft labels that are no distributions.

    Takes labels as the caller gave them: of 64 bits, JAX may have kept 32. Labels of masked
    examples are not looked at. Nothing is checked where labels or mask are unknown: in a trace, and
    in arrays that other processes hold too.

    Args:
      labels: classes, or soft labels of shape `shape`.
      where: a mask that fits the logits, or None.
      shape: the logits' shape.
      axis: the axis of the classes.
      is_soft: the kind of the labels.

    Raises:
      InputError: naming what was found, and where.
    """
    values = _known(labels)
    mask = np.ones((1,) * len(shape), bool) if where is None else _known(where)
    if values is None or mask is None or not values.size:
        return
    if mask.ndim < len(shape):
        mask = np.expand_dims(mask, axis)
    mask = np.moveaxis(mask.astype(bool), axis, -1)
    if is_soft:
        _check_soft(np.moveaxis(values, axis, -1), mask, shape, axis)
    else:
        kept = np.broadcast_to(mask.any(axis=-1), values.shape)
        _check_classes(values[kept], shape[axis])


def _check_classes(classes: np.ndarray, num_classes: int) -> None:
    """Refuse classes out of range."""
    if not classes.size:
        return
    if classes.dtype.itemsize == 1:  # NumPy finds no least value of a dtype of 4 bits
        classes = classes.astype(np.int32)
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"labels range from {low} to {high}; expected classes in [0, {num_classes}), the "
            "logits' class count. Mask examples that have no label by `where`."
        )


def _check_soft(labels: np.ndarray, mask: np.ndarray, shape: tuple[int, ...], axis: int) -> None:
    """Refuse soft labels, classes last, that have negative parts or do not sum to 1.

    What a mask of classes hides still belongs to the sum, unless it is not finite.
    """
    tolerance = _TOLERANCE
    if jnp.issubdtype(labels.dtype, jnp.floating):  # 8 bits and fewer, or many tiny parts
        info = jnp.finfo(labels.dtype)
        tolerance += float(info.eps) + shape[axis] * float(info.smallest_subnormal)
    labels = labels.astype(np.float64)
    finite = np.isfinite(labels)
    total = np.where(finite, labels, 0).sum(axis=-1)
    bad = (mask & ~(finite & (labels >= 0))).any(axis=-1) | (np.abs(total - 1) > tolerance)
    bad &= mask.any(axis=-1)
    if bad.any():
        first = np.unravel_index(bad.argmax(), bad.shape)
        found = np.array2string(labels[first], precision=4, threshold=8, edgeitems=3)
        at = f"[{', '.join(map(str, first))}]" if first else ""
        raise InputError(
            f"labels{at} is {found}; labels of the logits' shape {shape} are soft labels: "
            f"expected weights along axis {axis} that are finite, at least 0 and sum to 1. Give "
            "classes as integers without that axis; mask examples that have no label by `where`."
        )


def _known(value: jax.typing.ArrayLike) -> np.ndarray | None:
    """The values of an argument, or None if this process does not know them all."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    try:  # by NumPy, so that a constant is known inside a trace too
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list that holds traced values
        return None
