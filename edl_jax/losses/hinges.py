"""Losses of the margin by which the label's logit exceeds its strongest rival's."""

import jax
import jax.numpy as jnp

from edl_jax.losses.formula import LOSSES, Candidates, check_number, per_example

ArrayLike = jax.typing.ArrayLike


@LOSSES.register("multiclass_hinge")
def multiclass_hinge(
    logits: ArrayLike, labels: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Multiclass hinge loss, `max(0, 1 + max_{j != y} x_j - x_y)`.

    As `optax.losses.multiclass_hinge_loss`. Gentile and Warmuth's linear hinge loss is for
    two classes; this is Crammer and Singer's form of it for several.

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
      Gentile and Warmuth, "Linear Hinge Loss and Average Margin", 1998.
      https://proceedings.neurips.cc/paper/1998/hash/a14ac55a4f27472c5d894ec1c3c743d2-Abstract.html
      Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
      Machines", 2001. https://www.jmlr.org/papers/v2/crammer01a.html
    """

    def formula(c: Candidates) -> jax.Array:
        return jnp.maximum(0, 1 + c.rival() - c.log_p())

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("smoothed_zero_one")
def smoothed_zero_one(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    sharpness: float = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Smoothed 0-1 loss, `1 / (1 + exp(sharpness (x_y - max_{j != y} x_j)))`.

    The paper's sigmoid of a binary margin, with the margin over the strongest rival in its place:
    as the sharpness grows, the loss becomes 1 for a wrong class and 0 for the right one.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      sharpness: the paper's K, more than 0. The paper raises it while it optimises; a constant 1
        is ours.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses from 0 to 1, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `sharpness` is out of range.

    References:
      Nguyen and Sanner, "Algorithms for Direct 0-1 Loss Optimization in Binary Classification",
      2013. https://proceedings.mlr.press/v28/nguyen13a.html
    """
    check_number("sharpness", sharpness, 0, open_low=True)

    def formula(c: Candidates) -> jax.Array:
        return jax.nn.sigmoid(sharpness * (c.rival() - c.log_p()))

    return per_example(formula, logits, labels, axis, where)
