"""Cross-entropy and the losses that bend it: smoothing, focal and polynomial."""

import jax
import jax.numpy as jnp

from edl_jax.losses.formula import (
    LOSSES,
    Candidates,
    check_count,
    check_number,
    mean_over_classes,
    one_hot,
    per_example,
)
from edl_jax.losses.log_probabilities import FLOOR

ArrayLike = jax.typing.ArrayLike


@LOSSES.register("cross_entropy")
def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Cross-entropy, `-log p_y`.

    As `optax.losses.softmax_cross_entropy_with_integer_labels` and `softmax_cross_entropy`. The
    value is held at 1e9, the gradient is not.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.

    References:
      Bridle, "Training Stochastic Model Recognition Algorithms as Networks can Lead to Maximum
      Mutual Information Estimation of Parameters", 1989.
      https://mlanthology.org/neurips/1989/bridle1989neurips-training
    """
    return per_example(lambda c: -c.log_p(), logits, labels, axis, where)


@LOSSES.register("label_smoothing")
def label_smoothing(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float = 0.1,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy against smoothed labels, `-(1 - alpha) log p_y - alpha mean_k log p_k`.

    The label that `optax.losses.smooth_labels` makes; under a mask, it is spread over the classes
    that take part.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      alpha: share of the label spread over all classes, in [0, 1]; the paper's 0.1.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `alpha` is out of range.

    References:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016.
      https://arxiv.org/abs/1512.00567
    """
    check_number("alpha", alpha, 0, 1)

    def formula(c: Candidates) -> jax.Array:
        spread = mean_over_classes(c.every_log_p, c.where)
        return -(1 - alpha) * c.log_p() - alpha * spread

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("focal")
def focal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: float = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss on the softmax, `-(1 - p_y)^gamma log p_y`.

    The paper states it for a sigmoid (`optax.losses.sigmoid_focal_loss`) and weights classes too;
    this is its usual form for one label among several classes, without weights.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      gamma: how much confident examples count less, at least 0; the paper's 2.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `gamma` is out of range.

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2017.
      https://arxiv.org/abs/1708.02002
    """
    check_number("gamma", gamma, 0)

    def formula(c: Candidates) -> jax.Array:
        return c.at(focal_of_every_class(c.every_log_p, gamma))

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("poly")
def poly(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: float = 2.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """PolyLoss of the first order, `-log p_y + epsilon (1 - p_y)`.

    As `optax.losses.poly_loss_cross_entropy`.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      epsilon: what is added to the polynomial's first coefficient, at least -1; the paper's 2 for
        image classification.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `epsilon` is out of range.

    References:
      Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
      2022. https://arxiv.org/abs/2204.12511
    """
    check_number("epsilon", epsilon, -1)

    def formula(c: Candidates) -> jax.Array:
        return -c.log_p() + epsilon * c.miss()

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("taylor_ce")
def taylor_ce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    order: int = 2,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Taylor cross-entropy, `sum_{i=1}^order (1 - p_y)^i / i`.

    The first terms of `-log p_y` in powers of `1 - p_y`: half of mean absolute error at order 1,
    cross-entropy as the order grows.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      order: number of terms, from 1 to 1000; of the few that the paper tries, the smallest between
        its two limits.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `order` is out of range.

    References:
      Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", 2020.
      https://www.ijcai.org/proceedings/2020/305
    """
    check_count("order", order, 1, 1000)

    def formula(c: Candidates) -> jax.Array:
        miss = c.miss()
        coefficients = jnp.asarray([*(1 / i for i in range(order, 0, -1)), 0.0], miss.dtype)
        return jnp.polyval(coefficients, miss)

    return per_example(formula, logits, labels, axis, where)


def focal_of_every_class(log_p: jax.Array, gamma: ArrayLike) -> jax.Array:
    """`-(1 - p_k)^gamma log p_k` of every class, `[..., num_classes]`."""
    return -jnp.exp(gamma * _log_complement(log_p)) * log_p


def _log_complement(log_p: jax.Array) -> jax.Array:
    """`log(1 - p_k)` of every class, `[..., num_classes]`, with a finite gradient as `p_k` nears 1.

    For the most probable class it is the sum of the others; for those, `p_k` is at most 1/2.
    """
    is_top = one_hot(jnp.argmax(log_p, axis=-1), log_p) > 0
    others = jnp.where(is_top, FLOOR, log_p)
    of_top = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    return jnp.where(is_top, of_top, jnp.log1p(-jnp.exp(others)))
