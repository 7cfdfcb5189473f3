"""The edge of every loss: arguments checked once, and log-probabilities that stay finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from edl_jax.errors import InputError, shortened
from edl_jax.networks.summaries import FLOOR, hold

ArrayLike = jax.typing.ArrayLike
# Of logits `[..., num_classes]`, float32 at least and 0 where masked; labels; and a mask
# `[..., num_classes]` or None: the losses, `[...]`.
Losses = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]

# How far from 1 a soft label's sum may be: labels mixed in bfloat16 are 2^-8 off.
_TOLERANCE = 1e-2


def per_example(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int,
    where: ArrayLike | None,
    *,
    of_classes: Losses,
    of_weights: Losses,
) -> jax.Array:
    """The losses `[...]` of arguments as of `EvolvedLoss.__call__`, in the logits' dtype.

    `of_classes` takes classes `[...]` int32 in range; `of_weights` takes soft labels
    `[..., num_classes]`, 0 on masked classes. The loss is 0 where the label is a masked class or no
    class takes part; else NaN where the label is out of range or not finite.
    """
    raw_labels = labels
    logits, labels = _as_array("logits", logits), _as_array("labels", labels)
    shape, dtype = logits.shape, logits.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"logits have dtype {dtype}; expected a floating dtype.")
    is_number = isinstance(axis, int | np.integer) and not isinstance(axis, bool)
    if not is_number or not -logits.ndim <= axis < logits.ndim:
        raise InputError(f"axis is {axis!r}; expected an axis of logits of shape {shape}.")
    if shape[axis] < 2:
        raise InputError(f"logits have shape {shape}; expected at least 2 classes.")
    batch = tuple(np.delete(shape, axis).tolist())
    is_soft = labels.shape == shape and not jnp.issubdtype(labels.dtype, jnp.complexfloating)
    if not is_soft and not (labels.shape == batch and jnp.issubdtype(labels.dtype, jnp.integer)):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; for classes along axis "
            f"{axis} of the logits, expected integers of shape {batch} or soft labels of {shape}."
        )
    mask = None if where is None else _mask(where, shape, axis)
    values = _known(raw_labels)
    if values is not None and not isinstance(mask, jax.Array):
        _check(np.moveaxis(values, axis, -1) if is_soft else values, mask, shape[axis], is_soft)

    mask = None if mask is None else jnp.broadcast_to(mask, (*batch, shape[axis]))
    logits = jnp.moveaxis(logits, axis, -1)
    # Not by promotion, which has no answer for the dtypes of 8 bits and fewer.
    if jnp.finfo(dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    if mask is not None:  # at the source: what is masked may be NaN, and NaN times 0 is NaN
        logits = jnp.where(mask, logits, 0)
    if is_soft:
        weights = jnp.moveaxis(labels, axis, -1).astype(logits.dtype)
        weights = weights if mask is None else jnp.where(mask, weights, 0)
        # An infinite weight on a loss of 0, or on one that saturates, would go unnoticed.
        is_finite = jnp.isfinite(jnp.sum(weights, axis=-1))
        return jnp.where(is_finite, of_weights(logits, weights, mask), jnp.nan).astype(dtype)
    if jnp.iinfo(labels.dtype).bits < 32:  # in which a class count of 256, say, would be 0
        labels = labels.astype(jnp.int32)
    in_range = (labels >= 0) & (labels < shape[axis])
    index = jnp.where(in_range, labels, 0).astype(jnp.int32)
    losses = jnp.where(in_range, of_classes(logits, index, mask), jnp.nan)
    if mask is not None:
        of_label = jnp.take_along_axis(mask, index[..., None], axis=-1)[..., 0]
        losses = jnp.where(jnp.where(in_range, of_label, jnp.any(mask, axis=-1)), losses, 0.0)
    return losses.astype(dtype)


def _as_array(name: str, value: ArrayLike) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is {value!r}; expected an array of numbers.") from error


def _mask(where: ArrayLike, shape: tuple[int, ...], axis: int) -> np.ndarray | jax.Array:
    """A mask of the classes or the examples as one with the classes last; NumPy's if known."""
    array, values = _as_array("where", where), _known(where)
    xp, mask = (jnp, array) if values is None else (np, values)
    whole = xp.expand_dims(mask, axis) if mask.ndim == len(shape) - 1 else mask
    fits = whole.ndim == len(shape) and all(
        size in (1, full) for size, full in zip(whole.shape, shape, strict=True)
    )
    if not fits or mask.dtype != bool:  # weights, say, or what is to be added to logits
        raise InputError(
            f"where has shape {mask.shape} and dtype {mask.dtype}; for logits of shape {shape} "
            f"with classes along axis {axis}, expected True and False for examples, without that "
            "axis, or for classes, of the logits' rank, such as where[None, :]."
        )
    return xp.moveaxis(whole, axis, -1)


def _check(labels: np.ndarray, mask: np.ndarray | None, num_classes: int, is_soft: bool) -> None:
    """Refuse classes out of range and soft labels that are no distributions.

    Takes labels as they were given: of 64 bits, JAX may have kept 32. Labels of masked examples may
    be anything; what a mask of classes hides of a soft label still belongs to its sum.
    """
    if is_soft:
        labels = labels.astype(np.float64)
        finite = np.isfinite(labels)
        total = np.where(finite, labels, 0).sum(axis=-1)
        off = ~(finite & (labels >= 0)) & (True if mask is None else mask)
        bad = off.any(axis=-1) | (np.abs(total - 1) > _TOLERANCE)
        expected = "soft labels that are finite, at least 0 and sum to 1"
    else:
        classes = labels.astype(np.int64)  # of unsigned ones, what does not fit becomes negative
        bad = (classes < 0) | (classes >= num_classes)
        expected = f"classes in [0, {num_classes})"
    bad = bad if mask is None else bad & mask.any(axis=-1)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        raise InputError(
            f"labels{[*first] if first else ''} is {shortened(labels[first])}; expected {expected};"
            " mask examples that have no label by `where`."
        )


def _known(value: ArrayLike) -> np.ndarray | None:
    """The values of an argument, or None in a trace and where other processes hold some."""
    if isinstance(value, Tracer) or not getattr(value, "is_fully_addressable", True):
        return None
    try:  # by NumPy, so that a constant is known inside a trace too
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list that holds traced values
        return None


def masked(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """Logits `[..., num_classes]`, least for masked classes unless no class takes part."""
    if where is None:
        return logits
    is_seen = where | ~jnp.any(where, axis=-1, keepdims=True)
    return jnp.where(is_seen, logits, jnp.finfo(logits.dtype).min)


def stable_logits(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """Logits `[..., num_classes]` with the largest at 0: differences cannot overflow."""
    if where is not None:
        logits = jnp.where(where, logits, jnp.finfo(logits.dtype).min)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    logits = hold(logits - top)
    return logits if where is None else jnp.where(where, logits, FLOOR)


def log_softmax(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """Log-probabilities of at least `FLOOR`, `[..., num_classes]`; masked classes get `FLOOR`."""
    log_p = hold(jax.nn.log_softmax(stable_logits(logits, where), axis=-1))
    return log_p if where is None else jnp.where(where, log_p, FLOOR)
