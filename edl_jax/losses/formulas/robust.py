"""Losses made to resist wrong labels."""

import jax
import jax.numpy as jnp

from edl_jax.losses.formulas.cross_entropies import focal_of_every_class
from edl_jax.losses.lift import Candidates, check_number, formula


@formula
def mae(c: Candidates) -> jax.Array:
    """Mean absolute error, `sum_k |p_k - [k = y]| = 2 (1 - p_y)`.

    References:
      Ghosh, Kumar and Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks",
      2017. https://arxiv.org/abs/1712.09482
    """
    return 2 * c.miss()


@formula
def gce(c: Candidates, *, q: float = 0.7) -> jax.Array:
    """Generalised cross-entropy, `(1 - p_y^q) / q`.

    Cross-entropy as `q` goes to 0, half of mean absolute error at 1.

    Args:
      q: in (0, 1]; the paper's 0.7.

    References:
      Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
      Noisy Labels", 2018. https://arxiv.org/abs/1805.07836
    """
    check_number("q", q, 0, 1, open_low=True)
    return -jnp.expm1(q * c.log_p()) / q


@formula
def sce(
    c: Candidates, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> jax.Array:
    """Symmetric cross-entropy, `-alpha log p_y - beta log_zero (1 - p_y)`.

    The second term is the reverse cross-entropy `-sum_k p_k log [k = y]` with `log_zero` for the
    logarithm of 0.

    Args:
      alpha: weight of cross-entropy, at least 0; the paper's 0.1 for CIFAR-10.
      beta: weight of reverse cross-entropy, at least 0; the paper's 1.
      log_zero: the paper's A, between -1000 and 0; its -4.

    References:
      Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019.
      https://arxiv.org/abs/1908.06112
    """
    _check_weights(alpha, beta, log_zero)
    return -alpha * c.log_p() - beta * log_zero * c.miss()


@formula
def nce_mae(c: Candidates, *, alpha: float = 1.0, beta: float = 1.0) -> jax.Array:
    """Normalised cross-entropy with mean absolute error, an active and a passive loss.

    `alpha log p_y / sum_k log p_k + beta (1 - p_y)`. Mean absolute error is halved as in the
    authors' code, so that the weights mean what theirs do.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.

    References:
      Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", 2020.
      https://arxiv.org/abs/2006.13554
    """
    _check_weights(alpha, beta)
    return alpha * _normalised(-c.every_log_p, c) + beta * c.miss()


@formula
def nce_rce(
    c: Candidates, *, alpha: float = 1.0, beta: float = 1.0, log_zero: float = -4.0
) -> jax.Array:
    """Normalised cross-entropy with reverse cross-entropy, an active and a passive loss.

    `alpha log p_y / sum_k log p_k - beta log_zero (1 - p_y)`.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      log_zero: the paper's A, between -1000 and 0; its -4.

    References:
      Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", 2020.
      https://arxiv.org/abs/2006.13554
    """
    _check_weights(alpha, beta, log_zero)
    return alpha * _normalised(-c.every_log_p, c) - beta * log_zero * c.miss()


@formula
def nfl_rce(
    c: Candidates,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.5,
    log_zero: float = -4.0,
) -> jax.Array:
    """Normalised focal loss with reverse cross-entropy, an active and a passive loss.

    `alpha F_y / sum_k F_k - beta log_zero (1 - p_y)` with `F_k = -(1 - p_k)^gamma log p_k`.

    Args:
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      gamma: the focal loss's, at least 0; the paper's 0.5.
      log_zero: the paper's A, between -1000 and 0; its -4.

    References:
      Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", 2020.
      https://arxiv.org/abs/2006.13554
    """
    _check_weights(alpha, beta, log_zero)
    check_number("gamma", gamma, 0)
    active = _normalised(focal_of_every_class(c.every_log_p, gamma), c)
    return alpha * active - beta * log_zero * c.miss()


def _check_weights(alpha: float, beta: float, log_zero: float = -1.0) -> None:
    check_number("alpha", alpha, 0)
    check_number("beta", beta, 0)
    check_number("log_zero", log_zero, -1000, 0)


def _normalised(every: jax.Array, c: Candidates) -> jax.Array:
    """The candidates' share `[..., n]` of the losses of all classes, `[..., num_classes]`."""
    total = jnp.sum(every, axis=-1, where=c.where, keepdims=True)
    # All are 0 where one class alone takes part.
    return c.at(every) / jnp.where(total > 0, total, 1.0)
