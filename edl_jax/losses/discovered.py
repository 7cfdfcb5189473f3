"""Losses that evolution found before: Baikal by genetic programming, TaylorGLO by CMA-ES."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import ConfigError
from edl_jax.losses.formula import (
    LOSSES,
    Candidates,
    check_number,
    mean_over_classes,
    num_taking_part,
    per_example,
    per_example_of_weights,
)
from edl_jax.losses.log_probabilities import log_softmax

ArrayLike = jax.typing.ArrayLike

# Cross-entropy's derivatives at w = p = 1/2, in the order of the parameters of `taylor_glo`.
CROSS_ENTROPY_EXPANSION = (0.5, 0.5, 1.0, -2.0, 8.0, 2.0, -4.0, 0.0)


@LOSSES.register("baikal")
def baikal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: float = 1e-7,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Baikal, `mean_k(-log p_k + [k = y] / p_k)`.

    Its first term holds every class's probability up, so that no prediction gets too confident.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      epsilon: least `p_y` in the fraction, in [1e-30, 1], ours: without it the fraction overflows.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of more than 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if `epsilon` is out of range.

    References:
      Gonzalez and Miikkulainen, "Improved Training Speed, Accuracy, and Data Utilization Through
      Loss Function Optimization", 2020. https://arxiv.org/abs/1905.11528
    """
    check_number("epsilon", epsilon, 1e-30, 1)

    def formula(c: Candidates) -> jax.Array:
        inverse = jnp.exp(-jnp.maximum(c.log_p(), jnp.log(epsilon)))
        count = num_taking_part(c.every_log_p, c.where)
        return mean_over_classes(-c.every_log_p, c.where) + inverse / count

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("taylor_glo")
def taylor_glo(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    parameters: Sequence[float] | jax.Array = CROSS_ENTROPY_EXPANSION,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """TaylorGLO: a third-order polynomial of labels and probabilities, summed over the classes.

    `-sum_k (a_2 v + a_3 v^2 / 2 + a_4 v^3 / 6 + a_5 u v + a_6 u v^2 / 2 + a_7 u^2 v / 2)` with
    `u = w_k - a_0` of the label's weight on the class and `v = p_k - a_1`. Soft labels take this
    formula, which is not the label-weighted mean. The paper divides by the number of classes, as it
    does in cross-entropy; like the authors' code, this does not.

    Args:
      logits: `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      parameters: `a_0` to `a_7`. The default is no evolved loss: it expands cross-entropy
        `-w log p` around w = p = 1/2, as the authors' code does to compare with, but for terms
        without `p`. It falls as `p_y` grows, with cross-entropy's slope near 1/2.
      axis: axis of the classes.
      where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

    Returns:
      Losses of any sign, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if there are not 8 finite parameters.

    References:
      Gonzalez and Miikkulainen, "Optimizing Loss Functions Through Multivariate Taylor Polynomial
      Parameterization", 2021. https://arxiv.org/abs/2002.00059
    """
    try:
        shape = np.shape(parameters)
    except ValueError:  # of lists within that differ in length
        shape = None
    if shape != (8,):
        raise ConfigError(f"parameters is {parameters!r}; expected 8 numbers.")
    if not isinstance(parameters, jax.Array):
        for value in parameters:
            check_number("a parameter", value, -1e6, 1e6)
    a = parameters

    def of_weights(x: jax.Array, weights: jax.Array, mask: jax.Array | None) -> jax.Array:
        u, v = weights - a[0], jnp.exp(log_softmax(x, mask)) - a[1]
        terms = a[2] * v + a[3] * v**2 / 2 + a[4] * v**3 / 6
        terms += a[5] * u * v + a[6] * u * v**2 / 2 + a[7] * u**2 * v / 2
        return -jnp.sum(terms, axis=-1, where=mask)

    return per_example_of_weights(of_weights, logits, labels, axis, where)
