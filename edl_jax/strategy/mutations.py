"""Mutation noise of zero mean and unit variance: chaotic orbits and their controls (design 1.4).

A chaotic orbit iterated in floating point dies: it falls on a fixed point or into a short cycle,
because every step loses a bit and floats have few. So an orbit is carried here as its *phase*
`theta` in [0, 1), a 32-bit fraction. The logistic map `x <- 4 x (1 - x)` is exactly

    x = sin(pi theta)^2,    theta <- 2 theta mod 1

(Ulam and von Neumann 1947), and doubling a binary fraction is a shift by one bit. The shift needs a
new lowest bit: the next digit of the initial phase, whose digits are independent fair bits. Drawing
it when it is needed gives the exact orbit of a uniformly random real number, to 32 bits, for ever.
The marginal of x is the arcsine law, of which `-sqrt(2) cos(2 pi theta)` is the standardised form.

The two control pairs tell the dynamics from the marginal: `logistic` and `arcsine` share a marginal
but only the first has memory, and so do `logistic_gaussian` and `gaussian`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mutation(NamedTuple):
    """A source of unit-variance noise with a state.

    Attributes:
      init: `(key, shape) -> orbit`, phases of `shape`, uint32.
      step: `(key, orbit) -> (orbit, noise)`, noise of the orbit's shape, float32, with mean 0 and
        variance 1.
    """

    init: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    step: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def random_phase(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Phases uniform over the circle, `shape`, uint32 (a turn is 2^32)."""
    return jax.random.bits(key, shape, jnp.uint32)


def double_phase(key: jax.Array, phase: jax.Array) -> jax.Array:
    """One step of the logistic map: `theta <- 2 theta mod 1` with a fresh last digit."""
    # One random byte serves eight neighbouring phases.
    size = phase.size
    digits = jnp.unpackbits(jax.random.bits(key, (-(-size // 8),), jnp.uint8))[:size]
    return (phase << 1) | digits.reshape(phase.shape).astype(jnp.uint32)


def logistic_value(phase: jax.Array) -> jax.Array:
    """`x = sin(pi theta)^2` in [0, 1], float32."""
    # The signed phase keeps 24 significant bits near theta = 0, where x is tiny.
    return jnp.sin(jnp.pi * _turns(phase)) ** 2


def arcsine_noise(phase: jax.Array) -> jax.Array:
    """`(x - 1/2) sqrt(8)`: the arcsine law with mean 0 and variance 1."""
    return -jnp.sqrt(2.0) * jnp.cos(2 * jnp.pi * _turns(phase))


def gaussian_noise(phase: jax.Array) -> jax.Array:
    """X mapped to a standard Gaussian by its distribution function, increasing in x."""
    # The distribution function of x is |2 theta| for theta in [-1/2, 1/2); its tails are taken
    # from the near side, so that neither rounds to 0 or 1.
    nearer_zero = jnp.minimum(phase, ~phase)  # folds theta and 1 - theta together, below 2^31
    lower = (nearer_zero.astype(jnp.float32) + 0.5) * 2.0**-31
    upper = ((jnp.uint32(2**31 - 1) - nearer_zero).astype(jnp.float32) + 0.5) * 2.0**-31
    tail = jax.scipy.special.ndtri(jnp.minimum(lower, upper))
    return jnp.where(lower < upper, tail, -tail)


def _turns(phase: jax.Array) -> jax.Array:
    """The phase in turns, in [-1/2, 1/2)."""
    return jax.lax.bitcast_convert_type(phase, jnp.int32).astype(jnp.float32) * 2.0**-32


def _chaotic(noise: Callable[[jax.Array], jax.Array]) -> Mutation:
    def step(key: jax.Array, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
        phase = double_phase(key, phase)
        return phase, noise(phase)

    return Mutation(random_phase, step)


def _independent(draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> Mutation:
    def step(key: jax.Array, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
        return phase, draw(key, phase.shape)

    return Mutation(random_phase, step)


MUTATIONS: dict[str, Mutation] = {
    "logistic": _chaotic(arcsine_noise),
    "logistic_gaussian": _chaotic(gaussian_noise),
    "arcsine": _independent(lambda key, shape: arcsine_noise(random_phase(key, shape))),
    "gaussian": _independent(jax.random.normal),
    "uniform": _independent(
        lambda key, shape: jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5)
    ),
}
