"""Losses made to resist wrong labels."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt, Le

from edl_jax.checked import NotNegative
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
    """Generalised cross-entropy, `(1 - p_y^q) / q`.

    Cross-entropy as `q` goes to 0, half of mean absolute error at 1.

    Args:
      q: in (0, 1]; the paper's 0.7.

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
    """Normalised cross-entropy with mean absolute error, an active and a passive loss.

    `alpha log p_y / sum_k log p_k + beta (1 - p_y)`, as in the authors' code.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.

    References:
      Ma et al., 2020. https://arxiv.org/abs/2006.13554
    """
    return alpha * _normalised(-c.every_log_p, c) + beta * c.miss()


@formula
def nce_rce(c: Candidates, *, alpha: NotNegative = 1.0, beta: NotNegative = 1.0) -> jax.Array:
    """Normalised cross-entropy with reverse cross-entropy, an active and a passive loss.

    `alpha log p_y / sum_k log p_k + 4 beta (1 - p_y)`.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.

    References:
      Ma et al., 2020. https://arxiv.org/abs/2006.13554
    """
    return alpha * _normalised(-c.every_log_p, c) - beta * _LOG_ZERO * c.miss()


@formula
def nfl_rce(
    c: Candidates,
    *,
    alpha: NotNegative = 1.0,
    beta: NotNegative = 1.0,
    gamma: NotNegative = 0.5,
) -> jax.Array:
    """Normalised focal loss with reverse cross-entropy, an active and a passive loss.

    `alpha F_y / sum_k F_k + 4 beta (1 - p_y)` with `F_k = -(1 - p_k)^gamma log p_k`.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      gamma: the focal loss's, at least 0; the paper's 0.5.

    References:
      Ma et al., 2020. https://arxiv.org/abs/2006.13554
    """
    active = _normalised(focal_of_every_class(c.every_log_p, gamma), c)
    return alpha * active - beta * _LOG_ZERO * c.miss()


def _normalised(every: jax.Array, c: Candidates) -> jax.Array:
    """The candidates' share `[..., n]` of the losses of all classes, `[..., num_classes]`."""
    total = jnp.sum(every, axis=-1, where=c.where, keepdims=True)
    # All are 0 where one class alone takes part.
    return c.at(every) / jnp.where(total > 0, total, 1.0)
