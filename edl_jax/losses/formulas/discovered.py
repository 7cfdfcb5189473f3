"""Losses that evolution found before: Baikal by genetic programming, TaylorGLO by CMA-ES."""

from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le

from edl_jax.errors import ConfigError
from edl_jax.losses.inputs import log_softmax
from edl_jax.losses.lift import Candidates, formula, formula_of_weights

# Cross-entropy's derivatives at w = p = 1/2, in the order of the parameters of `taylor_polynomial`.
CROSS_ENTROPY_EXPANSION = (0.5, 0.5, 1.0, -2.0, 8.0, 2.0, -4.0, 0.0)


@formula
def baikal(c: Candidates, *, epsilon: Annotated[float, Ge(1e-30), Le(1)] = 1e-7) -> jax.Array:
    """Baikal, `mean_k(-log p_k + [k = y] / p_k)`.

    Args:
      epsilon: least `p_y` in the fraction, in [1e-30, 1], ours: without it the fraction overflows.

    References:
      Gonzalez and Miikkulainen, 2020. https://arxiv.org/abs/1905.11528
    """
    inverse = jnp.exp(-jnp.maximum(c.log_p(), jnp.log(epsilon)))
    return c.mean(-c.every_log_p) + inverse / c.num_classes()


@formula_of_weights
def taylor_polynomial(
    x: jax.Array,
    weights: jax.Array,
    where: jax.Array | None,
    *,
    parameters: Sequence[float] | jax.Array = CROSS_ENTROPY_EXPANSION,
) -> jax.Array:
    """TaylorGLO: a third-order polynomial of labels and probabilities, summed over the classes.

    `-sum_k (a_2 v + a_3 v^2 / 2 + a_4 v^3 / 6 + a_5 u v + a_6 u v^2 / 2 + a_7 u^2 v / 2)` with
    `u = w_k - a_0` of the label's weight on the class and `v = p_k - a_1`; of any sign. As in the
    authors' code, and not in the paper, it is not divided by the number of classes.

    Args:
      parameters: `a_0` to `a_7`. The default is no evolved loss: it expands cross-entropy
        `-w log p` around w = p = 1/2, but for terms without `p`.

    References:
      Gonzalez and Miikkulainen, 2021. https://arxiv.org/abs/2002.00059
    """
    a = parameters
    if np.shape(a) != (8,):
        raise ConfigError(f"parameters is {a!r}; expected 8 numbers.")
    u, v = weights - a[0], jnp.exp(log_softmax(x, where)) - a[1]
    terms = a[2] * v + a[3] * v**2 / 2 + a[4] * v**3 / 6
    terms += a[5] * u * v + a[6] * u * v**2 / 2 + a[7] * u**2 * v / 2
    return -jnp.sum(terms, axis=-1, where=where)
