"""The bi-tempered logistic loss."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from edl_jax.losses.inputs import FLOOR, log_softmax, stable_logits
from edl_jax.losses.lift import formula_of_weights

# Before the last: enough for a mass within 2e-6 of 1, of 1,000 classes and any logits.
_NEWTON_STEPS = 11


@formula_of_weights
def bi_tempered(
    x: jax.Array,
    weights: jax.Array,
    where: jax.Array | None,
    *,
    t1: Annotated[float, Ge(0), Le(1)] = 0.8,
    t2: Annotated[float, Ge(1), Le(10)] = 1.2,
) -> jax.Array:
    """Bi-tempered logistic loss: a tempered logarithm of a tempered softmax.

    `sum_k w_k (log_t1 w_k - log_t1 p_k) - (w_k^(2 - t1) - p_k^(2 - t1)) / (2 - t1)`, with the label
    as weights `w`, `p_k = exp_t2(x_k - lambda)` and lambda such that they sum to 1. Here
    `log_t(u) = (u^(1 - t) - 1) / (1 - t)` and `exp_t` is its inverse. At `t1 = t2 = 1` it is
    cross-entropy, less the entropy of a soft label. Lambda is solved for to the precision of the
    dtype, where the authors' code stops after 5 rounds of a fixed-point iteration.

    Args:
      t1: temperature of the logarithm, in [0, 1]; the paper's 0.8 for CIFAR-100.
      t2: temperature of the softmax, from 1 to 10; the paper's 1.2 for CIFAR-100.

    References:
      Amid et al., 2019. https://arxiv.org/abs/1906.03361
    """
    t1, t2 = float(t1), float(t2)  # which formula applies depends on them
    log_p = log_tempered_softmax(x, t2, where)
    log_w = jnp.log(jnp.where(weights > 0, weights, 1.0))
    terms = weights * (_log_t(log_w, t1) - _log_t(log_p, t1))
    terms -= (weights ** (2 - t1) - jnp.exp((2 - t1) * log_p)) / (2 - t1)
    return jnp.sum(terms, axis=-1, where=where)


def log_tempered_softmax(x: jax.Array, t: float, mask: jax.Array | None) -> jax.Array:
    """Logarithm of the tempered softmax, `[..., num_classes]`, for a temperature of at least 1."""
    if t == 1:
        return log_softmax(x, mask)
    x = stable_logits(x, mask)
    if mask is not None:  # where no class takes part, any finite answer will do
        mask |= ~jnp.any(mask, axis=-1, keepdims=True)

    def newton(x: jax.Array, normaliser: jax.Array) -> jax.Array:
        # Mass^(1 - t) is concave in the normaliser, and linear where all logits are equal, so that
        # steps from below converge at once there and never overshoot elsewhere.
        log_p = _log_exp_t(x - normaliser, t)
        mass = jax.nn.logsumexp(log_p, axis=-1, where=mask, keepdims=True)
        slope = jnp.sum(jnp.exp(t * log_p - mass), axis=-1, where=mask, keepdims=True)
        return normaliser + jnp.expm1((t - 1) * mass) / ((t - 1) * jax.lax.stop_gradient(slope))

    # At the largest logit the mass is at least 1. Only the last step has a gradient, in which the
    # normaliser is the solution already: that of the equation.
    given = jax.lax.stop_gradient(x)
    start = jnp.max(given, axis=-1, keepdims=True)
    found = jax.lax.fori_loop(0, _NEWTON_STEPS, lambda _, value: newton(given, value), start)
    values = _log_exp_t(x - newton(x, found), t)
    return values if mask is None else jnp.where(mask, values, FLOOR)


def _log_exp_t(u: jax.Array, t: float) -> jax.Array:
    """`log exp_t(u)` for a temperature above 1; as a logarithm of 1 + v, precise for t near 1."""
    return -jnp.log1p((1 - t) * u) / (t - 1)


def _log_t(log_u: jax.Array, t: float) -> jax.Array:
    """The tempered logarithm of `exp(log_u)`."""
    return log_u if t == 1 else jnp.expm1((1 - t) * log_u) / (1 - t)
