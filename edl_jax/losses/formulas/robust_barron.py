"""Barron's general robust loss of `1 - p_y`, with a given or a learned shape."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Gt, Le, Lt
from flax import nnx

from edl_jax.checked import Positive
from edl_jax.losses.lift import LOSSES, Candidates, check_option, formula, of_candidates

ArrayLike = jax.typing.ArrayLike

# Points of the trapezoidal rule in log x, over which the distribution's integral is taken.
_STEP = 0.25
_LOG_X = np.arange(-20.0, 20.0, _STEP)

# Where the authors' code keeps what it learns.
_LOW, _HIGH, _SMALLEST_SCALE = 0.001, 1.999, 1e-5


@formula
def barron(c: Candidates, *, alpha: ArrayLike = 1.0, scale: Positive = 1.0) -> jax.Array:
    """General robust loss of the residual `1 - p_y`.

    `rho(x) = |alpha - 2| / alpha (((x / scale)^2 / |alpha - 2| + 1)^(alpha / 2) - 1)`, continued to
    `(x / scale)^2 / 2` at alpha = 2, `log((x / scale)^2 / 2 + 1)` at 0 and
    `1 - exp(-(x / scale)^2 / 2)` at minus infinity.

    Args:
      alpha: shape, at most 2, minus infinity included; 1, as the authors' code begins to learn it.
      scale: residual at which the loss stops being quadratic, more than 0; likewise.

    References:
      Barron, "A General and Adaptive Robust Loss Function", 2019. https://arxiv.org/abs/1701.03077
    """
    if isinstance(alpha, jax.Array) or alpha != -math.inf:
        check_option("alpha", alpha, Annotated[float, Le(2)])
    return _rho(c.miss() / scale, alpha)


@LOSSES.register("adaptive_barron")
class AdaptiveBarron(nnx.Module):
    """Barron's robust loss of `1 - p_y` with a learned shape and scale.

    The negative log-likelihood `rho(x, alpha, scale) + log(scale) + log Z(alpha)` of a residual
    under the distribution whose density is `exp(-rho) / (scale Z)`: without the normaliser, the
    least loss would be a scale without bounds. It is negative where the scale is small.

    `Z(alpha)`, the integral of `exp(-rho(x, alpha, 1))` over all x, is the trapezoidal rule's in
    `log x`, not of the authors' table: `log Z` is within 1e-6, its derivative within 1e-3.

    Args:
      alpha: shape to begin with, in (0.001, 1.999), where the authors' code keeps it.
      scale: scale to begin with, more than 1e-5; likewise.

    References:
      Barron, "A General and Adaptive Robust Loss Function", 2019. https://arxiv.org/abs/1701.03077
    """

    def __init__(self, *, alpha: float = 1.0, scale: float = 1.0):
        alpha = float(check_option("alpha", alpha, Annotated[float, Gt(_LOW), Lt(_HIGH)]))
        scale = float(check_option("scale", scale, Annotated[float, Gt(_SMALLEST_SCALE)]))
        share, excess = (alpha - _LOW) / (_HIGH - _LOW), scale - _SMALLEST_SCALE
        inverse_softplus = excess + math.log(-math.expm1(-excess))
        self.latent_alpha = nnx.Param(jnp.asarray(math.log(share / (1 - share)), jnp.float32))
        self.latent_scale = nnx.Param(jnp.asarray(inverse_softplus, jnp.float32))

    def alpha(self) -> jax.Array:
        """The present shape, a float32 scalar: a sigmoid of `latent_alpha`."""
        return _LOW + (_HIGH - _LOW) * jax.nn.sigmoid(self.latent_alpha[...])

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

        return of_candidates(likelihood, logits, labels, axis, where)


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
    t = shape / 2 * log_term
    is_small = jnp.abs(t) < 1e-3
    safe = jnp.where(is_small, 1.0, t)
    ratio = jnp.where(is_small, 1 + t / 2 + t**2 / 6, jnp.expm1(safe) / safe)
    general = width / 2 * log_term * ratio
    return jnp.where(alpha == 2, half, jnp.where(is_welsch, -jnp.expm1(-half), general))
