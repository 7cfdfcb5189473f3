"""Losses made to resist wrong labels."""

import jax
import jax.numpy as jnp

from edl_jax.losses.formula import LOSSES, Candidates, check_number, per_example

ArrayLike = jax.typing.ArrayLike


@LOSSES.register("mae")
def mae(
    logits: ArrayLike, labels: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Mean absolute error, `sum_k |p_k - [k = y]| = 2 (1 - p_y)`.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses from 0 to 2, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.

    References:
      Ghosh, Kumar and Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks",
      2017. https://arxiv.org/abs/1712.09482
    """

    def formula(c: Candidates) -> jax.Array:
        return 2 * c.miss()

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("gce")
def gce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    q: float = 0.7,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Generalised cross-entropy, `(1 - p_y^q) / q`.

    Cross-entropy as `q` goes to 0, half of mean absolute error at 1.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      q: in (0, 1]; the paper's 0.7.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses from 0 to `1 / q`, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `q` is out of range.

    References:
      Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
      Noisy Labels", 2018. https://arxiv.org/abs/1805.07836
    """
    check_number("q", q, 0, 1, open_low=True)

    def formula(c: Candidates) -> jax.Array:
        return -jnp.expm1(q * c.log_p()) / q

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("sce")
def sce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Symmetric cross-entropy, `-alpha log p_y - beta log_zero (1 - p_y)`.

    The second term is the reverse cross-entropy `-sum_k p_k log [k = y]` with `log_zero` for the
    logarithm of 0.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      alpha: weight of cross-entropy, at least 0; the paper's 0.1 for CIFAR-10.
      beta: weight of reverse cross-entropy, at least 0; the paper's 1.
      log_zero: the paper's A, between -1000 and 0; its -4.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019.
      https://arxiv.org/abs/1908.06112
    """
    check_weights(alpha, beta, log_zero)

    def formula(c: Candidates) -> jax.Array:
        return -alpha * c.log_p() - beta * log_zero * c.miss()

    return per_example(formula, logits, labels, axis, where)


def check_weights(alpha: float, beta: float, log_zero: float = -1.0) -> None:
    """Refuse weights of a sum of two losses that are out of range.

    Raises:
      ConfigError: naming the option, its value and the range.
    """
    check_number("alpha", alpha, 0)
    check_number("beta", beta, 0)
    check_number("log_zero", log_zero, -1000, 0)
