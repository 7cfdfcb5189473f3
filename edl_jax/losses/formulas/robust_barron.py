"""Barron's general robust loss of `1 - p_y`, with a given or a learned shape."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edl_jax.errors import ConfigError
from edl_jax.losses.lift import LOSSES, Candidates, check_number, formula, per_example

ArrayLike = jax.typing.ArrayLike

# Points of the trapezoidal rule in log x, over which the distribution's integral is taken.
_STEP = 0.25
_LOG_X = np.arange(-20.0, 20.0, _STEP)

_SHAPE_RANGE = (0.001, 1.999)  # the authors' code's
_SMALLEST_SCALE = 1e-5  # likewise


@formula
def barron(c: Candidates, *, alpha: ArrayLike = 1.0, scale: ArrayLike = 1.0) -> jax.Array:
    """General robust loss of the residual `1 - p_y`.

    `rho(x) = |alpha - 2| / alpha (((x / scale)^2 / |alpha - 2| + 1)^(alpha / 2) - 1)`, continued to
    `(x / scale)^2 / 2` at alpha = 2, `log((x / scale)^2 / 2 + 1)` at 0 and
    `1 - exp(-(x / scale)^2 / 2)` at minus infinity; at 1 it is the Charbonnier loss, at -2 that of
    Geman and McClure.

    Args:
      alpha: shape, at most 2, minus infinity included; a number, or a traced scalar. The authors'
        code begins to learn it at 1, and the scale too.
      scale: residual at which the loss stops being quadratic, more than 0; likewise.

    References:
      Barron, "A General and Adaptive Robust Loss Function", 2019.
      https://arxiv.org/abs/1701.03077
    """
    if not (isinstance(alpha, numbers.Real) and alpha == -math.inf):
        check_number("alpha", alpha, -math.inf, 2)
    check_number("scale", scale, 0, open_low=True)
    return _rho(c.miss() / scale, alpha)


@LOSSES.register("adaptive_barron")
class AdaptiveBarron(nnx.Module):
    """Barron's robust loss of `1 - p_y` with a learned shape and scale.

    The negative log-likelihood `rho(x, alpha, scale) + log(scale) + log Z(alpha)` of a residual
    under the distribution whose density is `exp(-rho) / (scale Z)`. Without its normaliser, the
    least loss would be a scale without bounds. It is negative where the scale is small.

    `Z(alpha)`, the integral of `exp(-rho(x, alpha, 1))` over all x, is taken anew by the
    trapezoidal rule in `log x` with 160 points, in place of the authors' table: `log Z` is within
    1e-6 for every shape in range, and its derivative within 1e-3.

    Args:
      alpha: shape to begin with, in (0.001, 1.999), where the authors' code keeps it.
      scale: scale to begin with, more than 1e-5, below which the authors' code lets none fall.

    Raises:
      ConfigError: if a value is out of range.

    References:
      Barron, "A General and Adaptive Robust Loss Function", 2019.
      https://arxiv.org/abs/1701.03077
    """

    def __init__(self, *, alpha: float = 1.0, scale: float = 1.0):
        low, high = _SHAPE_RANGE
        check_number("alpha", alpha, low, high, open_low=True, known=True)
        check_number("scale", scale, _SMALLEST_SCALE, open_low=True, known=True)
        alpha, scale = float(alpha), float(scale)
        if alpha == high:
            raise ConfigError(f"alpha is {alpha}; expected a number, less than {high}.")
        share = (alpha - low) / (high - low)
        self.latent_alpha = nnx.Param(jnp.asarray(math.log(share / (1 - share)), jnp.float32))
        latent_scale = _inverse_softplus(scale - _SMALLEST_SCALE)
        self.latent_scale = nnx.Param(jnp.asarray(latent_scale, jnp.float32))

    def alpha(self) -> jax.Array:
        """The present shape, a float32 scalar: a sigmoid of `latent_alpha`."""
        low, high = _SHAPE_RANGE
        return low + (high - low) * jax.nn.sigmoid(self.latent_alpha[...])

    def scale(self) -> jax.Array:
        """The present scale, a float32 scalar: a softplus of `latent_scale`."""
        return _SMALLEST_SCALE + jax.nn.softplus(self.latent_scale[...])

    def __call__(
        self, logits: ArrayLike, labels: ArrayLike, *, axis: int = -1, where: Any = None
    ) -> jax.Array:
        """The loss of each example, called as `barron` is."""
        alpha, scale = self.alpha(), self.scale()
        normaliser = jnp.log(scale) + log_partition(alpha)

        def likelihood(c: Candidates) -> jax.Array:
            return _rho(c.miss() / scale, alpha) + normaliser

        return per_example(likelihood, logits, labels, axis, where)


def log_partition(alpha: jax.Array) -> jax.Array:
    """`log` of the integral of `exp(-rho(x, alpha, 1))` over all x, for shapes in [0, 2]."""
    x = jnp.asarray(np.exp(_LOG_X), jnp.float32)
    return jnp.log(2 * _STEP * jnp.sum(x * jnp.exp(-_rho(x, alpha))))


def _rho(x: jax.Array, alpha: ArrayLike) -> jax.Array:
    """The general loss of residuals in units of the scale."""
    alpha = jnp.asarray(alpha, x.dtype)
    half = x**2 / 2
    is_welsch = jnp.isneginf(alpha)
    shape = jnp.where(is_welsch | (alpha == 2), 1.0, alpha)  # where the formula can be computed
    width = jnp.abs(shape - 2)
    # |a - 2| / a ((1 + u)^(a / 2) - 1) as |a - 2| / 2 log(1 + u) (e^t - 1) / t, smooth at a = 0.
    log_term = jnp.log1p(2 * half / width)
    general = width / 2 * log_term * _expm1_ratio(shape / 2 * log_term)
    return jnp.where(alpha == 2, half, jnp.where(is_welsch, -jnp.expm1(-half), general))


def _expm1_ratio(t: jax.Array) -> jax.Array:
    """`(e^t - 1) / t`, 1 at 0."""
    is_small = jnp.abs(t) < 1e-3
    safe = jnp.where(is_small, 1.0, t)
    return jnp.where(is_small, 1 + t / 2 + t**2 / 6, jnp.expm1(safe) / safe)


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
