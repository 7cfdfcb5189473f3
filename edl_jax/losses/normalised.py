"""Sums of an active loss, normalised by its sum over the classes, and a passive one."""

import jax
import jax.numpy as jnp

from edl_jax.losses.cross_entropies import focal_of_every_class
from edl_jax.losses.formula import LOSSES, Candidates, check_number, per_example
from edl_jax.losses.robust import check_weights

ArrayLike = jax.typing.ArrayLike


@LOSSES.register("nce_mae")
def nce_mae(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised cross-entropy with mean absolute error, an active and a passive loss.

    `alpha log p_y / sum_k log p_k + beta (1 - p_y)`. Mean absolute error is halved as in the
    authors' code, so that the weights mean what theirs do.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses from 0 to `alpha + beta`, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", 2020.
      https://arxiv.org/abs/2006.13554
    """
    check_weights(alpha, beta)

    def formula(c: Candidates) -> jax.Array:
        return alpha * _normalised(-c.every_log_p, c) + beta * c.miss()

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("nce_rce")
def nce_rce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    log_zero: float = -4.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised cross-entropy with reverse cross-entropy, an active and a passive loss.

    `alpha log p_y / sum_k log p_k - beta log_zero (1 - p_y)`.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      log_zero: the paper's A, between -1000 and 0; its -4.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", 2020.
      https://arxiv.org/abs/2006.13554
    """
    check_weights(alpha, beta, log_zero)

    def formula(c: Candidates) -> jax.Array:
        return alpha * _normalised(-c.every_log_p, c) - beta * log_zero * c.miss()

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("nfl_rce")
def nfl_rce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.5,
    log_zero: float = -4.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Normalised focal loss with reverse cross-entropy, an active and a passive loss.

    `alpha F_y / sum_k F_k - beta log_zero (1 - p_y)` with `F_k = -(1 - p_k)^gamma log p_k`.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      alpha: weight of the active loss, at least 0; the paper's 1 for CIFAR-10.
      beta: weight of the passive loss, at least 0; the paper's 1 for CIFAR-10.
      gamma: the focal loss's, at least 0; the paper's 0.5.
      log_zero: the paper's A, between -1000 and 0; its -4.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", 2020.
      https://arxiv.org/abs/2006.13554
    """
    check_weights(alpha, beta, log_zero)
    check_number("gamma", gamma, 0)

    def formula(c: Candidates) -> jax.Array:
        active = _normalised(focal_of_every_class(c.every_log_p, gamma), c)
        return alpha * active - beta * log_zero * c.miss()

    return per_example(formula, logits, labels, axis, where)


def _normalised(every: jax.Array, c: Candidates) -> jax.Array:
    """The candidates' share `[..., n]` of the losses of all classes, `[..., num_classes]`."""
    total = jnp.sum(every, axis=-1, where=c.where, keepdims=True)
    # All are 0 where one class alone takes part.
    return c.at(every) / jnp.where(total > 0, total, 1.0)
