"""Losses made to resist wrong labels."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt, Le

from edl_jax.checked import NotNegative, Positive
from edl_jax.losses.formulas.cross_entropies import focal_of_every_class
from edl_jax.losses.lift import Candidates, formula

_LOG_ZERO = -4.0  # the A of both papers, for the logarithm of 0 in reverse cross-entropy


@formula
def mae(c: Candidates) -> jax.Array:
    """Mean absolute error, `sum_k |p_k - [k = y]| = 2 (1 - p_y)`.

    References:
      Ghosh, Kumar and Sastry, 2017. https://arxiv.org/abs/1712.09482
    """
    return 2 * c.miss()


@formula
def gce(c: Candidates, *, q: Annotated[float, Gt(0), Le(1)] = 0.7) -> jax.Array:
    """Generalized cross-entropy, `(1 - p_y^q) / q`.

    Args:
      q: in (0, 1]: cross-entropy near 0, half of mean absolute error at 1; the paper's 0.7.

    References:
      Zhang and Sabuncu, 2018. https://arxiv.org/abs/1805.07836
    """
    return -jnp.expm1(q * c.log_p()) / q


@formula
def sce(c: Candidates, *, alpha: NotNegative = 0.1, beta: NotNegative = 1.0) -> jax.Array:
    """Symmetric cross-entropy, `-alpha log p_y + 4 beta (1 - p_y)`.

    The second term is the reverse cross-entropy `-sum_k p_k log [k = y]`, with -4 for `log 0`.

    Args:
      alpha: weight of cross-entropy, at least 0; the paper's 0.1 for CIFAR-10.
      beta: weight of reverse cross-entropy, at least 0; the paper's 1.

    References:
      Wang et al., 2019. https://arxiv.org/abs/1908.06112
    """
    return -alpha * c.log_p() - beta * _LOG_ZERO * c.miss()


@formula
def nce_mae(c: Candidates, *, alpha: NotNegative = 1.0, beta: NotNegative = 1.0) -> jax.Array:
    """Normalized cross-entropy with mean absolute error, an active and a passive loss.

    `alpha log p_y / sum_k log p_k + beta (1 - p_y)`, as in the authors' code.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.

    References:
      Ma et al., 2020. https://arxiv.org/abs/2006.13554
    """
    return alpha * _normalized(-c.every_log_p, c) + beta * c.miss()


@formula
def nce_rce(c: Candidates, *, alpha: NotNegative = 1.0, beta: NotNegative = 1.0) -> jax.Array:
    """Normalized cross-entropy with reverse cross-entropy, an active and a passive loss.

    `alpha log p_y / sum_k log p_k + 4 beta (1 - p_y)`.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.

    References:
      Ma et al., 2020. https://arxiv.org/abs/2006.13554
    """
    return alpha * _normalized(-c.every_log_p, c) - beta * _LOG_ZERO * c.miss()


@formula
def nfl_rce(
    c: Candidates, *, alpha: NotNegative = 1.0, beta: NotNegative = 1.0, gamma: NotNegative = 0.5
) -> jax.Array:
    """Normalized focal loss with reverse cross-entropy, an active and a passive loss.

    `alpha F_y / sum_k F_k + 4 beta (1 - p_y)` with `F_k = -(1 - p_k)^gamma log p_k`.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      gamma: the focal loss's, at least 0; the paper's 0.5.

    References:
      Ma et al., 2020. https://arxiv.org/abs/2006.13554
    """
    active = _normalized(focal_of_every_class(c.every_log_p, gamma), c)
    return alpha * active - beta * _LOG_ZERO * c.miss()


def _normalized(every: jax.Array, c: Candidates) -> jax.Array:
    """The candidates' share `[..., n]` of the losses of all classes, `[..., num_classes]`."""
    total = jnp.sum(every, axis=-1, where=c.where, keepdims=True)
    # All are 0 where one class alone takes part.
    return c.at(every) / jnp.where(total > 0, total, 1.0)


@formula
def barron(
    c: Candidates, *, alpha: Annotated[float, Le(2)] = 1.0, scale: Positive = 1.0
) -> jax.Array:
    """General robust loss of the residual `1 - p_y`.

    `rho(x) = |alpha - 2| / alpha (((x / scale)^2 / |alpha - 2| + 1)^(alpha / 2) - 1)`, continued to
    `(x / scale)^2 / 2` at alpha = 2 and `log((x / scale)^2 / 2 + 1)` at 0.

    Args:
      alpha: shape, at most 2, and -1e6 for Welsch's loss; 1, as the authors' code begins to learn.
      scale: residual at which the loss stops being quadratic, more than 0; likewise.

    References:
      Barron, "A General and Adaptive Robust Loss Function", 2019. https://arxiv.org/abs/1701.03077
    """
    half = (c.miss() / scale) ** 2 / 2
    a = jnp.asarray(alpha, half.dtype)
    shape = jnp.where(a == 2, 1.0, a)  # where the formula can be computed
    width = jnp.abs(shape - 2)
    # |a - 2| / a ((1 + u)^(a / 2) - 1) as |a - 2| / 2 log(1 + u) (e^t - 1) / t, smooth at a = 0.
    log_term = jnp.log1p(2 * half / width)
    t = shape / 2 * log_term
    is_small = jnp.abs(t) < 1e-3
    safe = jnp.where(is_small, 1.0, t)
    ratio = jnp.where(is_small, 1 + t / 2 + t**2 / 6, jnp.expm1(safe) / safe)
    return jnp.where(a == 2, half, width / 2 * log_term * ratio)
