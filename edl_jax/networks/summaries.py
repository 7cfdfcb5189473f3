"""The summaries of logits and a label that a class-agnostic network reads, in few passes.

With thousands of classes time goes into reading and writing arrays of the logits' size. There are
four passes: for the largest logits, exponentials, sums, and the gradient. A single array is kept.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

# Log-probabilities are held here, and masked classes get it: its exponential is 0, and sums,
# products and networks of it are finite in float32.
FLOOR = -1e9
_LANES = 8  # a partial sum's terms; XLA's CPU backend unrolls so few, and then uses vectors

_sum = functools.partial(jnp.sum, axis=-1, keepdims=True)


@jax.custom_jvp
def hold(values: jax.Array) -> jax.Array:
    """Values of at least `FLOOR`, with the gradient of values without a floor: the way down."""
    return jnp.maximum(values, FLOOR)


hold.defjvps(lambda tangent, held, values: tangent)


def summaries(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Those of `ClassAgnosticNetwork`, `[5, ...]`, of logits `[..., num_classes]`."""
    labels = labels[..., None]
    top, other = _largest(jax.lax.stop_gradient(logits), labels)
    own = jnp.take_along_axis(logits, labels, axis=-1)
    log_p = hold(logits - top)  # plus `log_total`
    p = jnp.exp(log_p)  # times `total`
    ties = (logits == other).astype(p.dtype)
    # Not p * p, of which XLA makes a second exponential.
    total, log_sum, mixed, ties = _sums(p, p * log_p, p * (1 - p), ties)
    log_total = jnp.log(total)
    ties -= (own == other).astype(p.dtype)  # none where all others are masked or -inf
    other = hold(_shared(other, logits, own, jnp.maximum(ties, 1)) - top)
    own, other = hold(own - top) - log_total, jnp.where(ties > 0, other, FLOOR) - log_total
    entropy, moment = log_total - log_sum / total, (total - mixed) / total**2
    return jnp.stack([jnp.exp(own), -own / 4, jnp.exp(other), entropy / 4, moment])[..., 0]


# Functions of the module: outside `jit` a new one would be compiled in every call.
def _larger(x: Any, y: Any) -> Any:
    return tuple(map(jnp.maximum, x, y))


def _added(x: Any, y: Any) -> Any:
    return tuple(map(jnp.add, x, y))


def _largest(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest logit and that of the classes other than the labels `[..., 1]`, each `[..., 1]`.

    As one reduction of two arrays they take one pass, and no array of the others is kept.
    """
    low = jnp.asarray(jnp.finfo(logits.dtype).min, logits.dtype)
    index = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    found = jax.lax.reduce(
        (logits, jnp.where(index == labels, low, logits)),
        (low, low),
        _larger,
        (logits.ndim - 1,),
    )
    return found[0][..., None], found[1][..., None]


@jax.custom_jvp
def _sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sums `[..., 1]` of arrays `[..., num_classes]`, in one pass for all."""
    *lead, num_classes = terms[0].shape
    size = num_classes // _LANES
    if size == 0:
        return tuple(map(_sum, terms))
    partial = jax.lax.reduce(
        tuple(x[..., : _LANES * size].reshape(*lead, _LANES, size) for x in terms),
        (jnp.zeros((), terms[0].dtype),) * len(terms),
        _added,
        (len(lead),),
    )
    rest = (x[..., _LANES * size :] for x in terms)
    return tuple(_sum(x) + _sum(y) for x, y in zip(partial, rest, strict=True))


@_sums.defjvp
def _(terms, tangents):
    return _sums(*terms), tuple(map(_sum, tangents))


@jax.custom_jvp
def _shared(value: jax.Array, logits: jax.Array, own: jax.Array, ties: jax.Array) -> jax.Array:
    """`value`, with the slope of a maximum that so many `ties` share, logits other than `own`."""
    return value


@_shared.defjvp
def _(primals, tangents):
    value, logits, own, ties = primals
    _, of_logits, of_own, _ = tangents
    slope = _sum(jnp.where(logits == value, of_logits, 0))
    # Not `value`, which has no slope: a second derivative is that of what stands here.
    return _shared(*primals), (slope - jnp.where(own == value, of_own, 0)) / ties
