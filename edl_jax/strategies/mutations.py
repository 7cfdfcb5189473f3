"""Mutation noise of zero mean and unit variance (docs/method.md, section 4).

An orbit is carried as its *phase* `theta` in [0, 1), a 32-bit fraction, so that it never dies. The
logistic map `x <- 4 x (1 - x)` is `theta <- 2 theta mod 1` of `x = sin(pi theta)^2` (Ulam and von
Neumann 1947), a shift by one bit with a fresh lowest one. The marginal of x is the arcsine law, of
which `-sqrt(2) cos(2 pi theta)` is the standardized form.

Two more maps are as exact: the tent map `x <- 1 - |1 - 2 x|` is the same doubling seen through
`x = 2 min(theta, 1 - theta)`, and the Chebyshev map of degree 3, `x <- 4 x^3 - 3 x`, is tripling
seen through `x = cos(2 pi theta)`, which carries a fresh digit of base 3 into the 32 bits. The sine
map `x <- sin(pi x)` has no closed form: see `sine_step`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.registry import Registry

# Mean and standard deviation of x under the invariant measure of the sine map, whose density in the
# angle u is analytic: 64 Chebyshev polynomials give it to 1e-13.
SINE_MEAN, SINE_STD = 0.46796294994, 0.35353303336

# The sine map in u, as (1 - u') / d by powers of d^2, highest first, for d = |u - 1/2|:
#   1 - u' = (2 / pi) asin(sqrt(2) sin(pi sin(pi d) / 4))
# is odd in d. Interpolated at the 7 Chebyshev nodes of d^2 in [0, 1/4], it errs by less than 1e-8,
# a sixth of what float32 rounds off, and takes a tenth of the time of the formula.
_SINE_MAP = (
    -0.167132395,
    1.74735236,
    -1.60857442,
    -0.850867652,
    2.34381567,
    -1.40006882,
    2.22144145,
)


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
    size = phase.size  # one random byte serves eight neighboring phases
    digits = jnp.unpackbits(jax.random.bits(key, (-(-size // 8),), jnp.uint8))[:size]
    return (phase << 1) | digits.reshape(phase.shape).astype(jnp.uint32)


def triple_phase(key: jax.Array, phase: jax.Array) -> jax.Array:
    """One step of the Chebyshev map of degree 3: `theta <- 3 theta mod 1` with a fresh digit."""
    # Eight digits of a word stray from fair and independent by a part in 6e5 at most.
    return phase * 3 + _digits(key, phase.shape, base=3, per_word=8)


def sine_step(key: jax.Array, phase: jax.Array) -> jax.Array:
    """One step of the sine map `x <- sin(pi x)`, `x = sin(pi theta)^2`, with fresh last digits.

    In the angle `u = 2 min(theta, 1 - theta)` the map is smooth, with slopes between 1.77 and 2.22.
    The rounding of float32 is hidden under 8 fresh bits, 2^-23 of the range, so that no orbit can
    rest on a fixed point or close a cycle. The fold reflects what strays beyond either end.
    """
    distance = abs(_from_middle(phase))
    square, slope = distance**2, jnp.zeros_like(distance)
    for coefficient in _SINE_MAP:
        slope = slope * square + coefficient
    image = jnp.uint32(2**31) - (slope * distance * 2.0**31).astype(jnp.uint32)
    return image + _digits(key, phase.shape, base=256, per_word=4) - 128


def settled_sine_phase(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Phases of the sine map's invariant measure: each step leaves 0.13 of what is missing."""
    key, *keys = jax.random.split(key, 7)
    phase = random_phase(key, shape)
    for key in keys:
        phase = sine_step(key, phase)
    return phase


def logistic_value(phase: jax.Array) -> jax.Array:
    """`x = sin(pi theta)^2` in [0, 1], float32, to 24 significant bits near 0."""
    return jnp.sin(jnp.pi * _turns(phase)) ** 2


def arcsine_noise(phase: jax.Array) -> jax.Array:
    """`(x - 1/2) sqrt(8)`: the arcsine law with mean 0 and variance 1."""
    return -jnp.sqrt(2.0) * jnp.cos(2 * jnp.pi * _turns(phase))


def gaussian_noise(phase: jax.Array) -> jax.Array:
    """X mapped to a standard Gaussian by its distribution function, increasing in x."""
    # The distribution function of x is |2 theta| for theta in [-1/2, 1/2); its tails are taken
    # from the near side, so that neither rounds to 0 or 1.
    nearer_zero = _fold(phase)
    lower = (nearer_zero.astype(jnp.float32) + 0.5) * 2.0**-31
    upper = ((jnp.uint32(2**31 - 1) - nearer_zero).astype(jnp.float32) + 0.5) * 2.0**-31
    tail = jax.scipy.special.ndtri(jnp.minimum(lower, upper))
    return jnp.where(lower < upper, tail, -tail)


def tent_noise(phase: jax.Array) -> jax.Array:
    """`(x - 1/2) sqrt(12)` for `x = 2 min(theta, 1 - theta)`: the uniform law."""
    return 12**0.5 * _from_middle(phase)


def sine_noise(phase: jax.Array) -> jax.Array:
    """The sine map's x, standardized."""
    return (logistic_value(phase) - SINE_MEAN) / SINE_STD


def _turns(phase: jax.Array) -> jax.Array:
    """The phase in turns, in [-1/2, 1/2)."""
    return jax.lax.bitcast_convert_type(phase, jnp.int32).astype(jnp.float32) * 2.0**-32


def _from_middle(phase: jax.Array) -> jax.Array:
    """`u - 1/2` for `u = 2 min(theta, 1 - theta)`, float32 in [-1/2, 1/2], rounded once."""
    return _turns((2 * _fold(phase) + 1) ^ jnp.uint32(2**31))


def _fold(phase: jax.Array) -> jax.Array:
    """Theta and 1 - theta together, in units of 2^-32, below 2^31."""
    return jnp.minimum(phase, ~phase)


def _digits(key: jax.Array, shape: tuple[int, ...], base: int, per_word: int) -> jax.Array:
    """Random digits, `shape`, uint32; one random word serves several."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // per_word),), jnp.uint32)
    digits = jnp.concatenate([words // base**place % base for place in range(per_word)])
    return digits[:size].reshape(shape)


def _chaotic(
    advance: Callable[[jax.Array, jax.Array], jax.Array],
    noise: Callable[[jax.Array], jax.Array],
    init: Callable[[jax.Array, tuple[int, ...]], jax.Array] = random_phase,
) -> Mutation:
    def step(key: jax.Array, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
        phase = advance(key, phase)
        return phase, noise(phase)

    return Mutation(init, step)


def _independent(draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> Mutation:
    return Mutation(random_phase, lambda key, phase: (phase, draw(key, phase.shape)))


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32, -(3**0.5), 3**0.5)


MUTATIONS: Registry[Mutation] = Registry("mutation", Mutation)
MUTATIONS.register("logistic")(_chaotic(double_phase, arcsine_noise))
MUTATIONS.register("logistic_gaussian")(_chaotic(double_phase, gaussian_noise))
MUTATIONS.register("tent")(_chaotic(double_phase, tent_noise))
MUTATIONS.register("sine")(_chaotic(sine_step, sine_noise, settled_sine_phase))
MUTATIONS.register("chebyshev")(_chaotic(triple_phase, arcsine_noise))
MUTATIONS.register("arcsine")(_independent(lambda k, shape: arcsine_noise(random_phase(k, shape))))
MUTATIONS.register("gaussian")(_independent(partial(jax.random.normal, dtype=jnp.float32)))
MUTATIONS.register("uniform")(_independent(_uniform))
