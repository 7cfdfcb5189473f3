"""Cross-entropy and the losses that bend it: smoothed, focal, polynomial and bi-tempered."""

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from edl_jax.checked import NotNegative
from edl_jax.losses.inputs import FLOOR, log_softmax, stable_logits
from edl_jax.losses.lift import Candidates, formula, formula_of_weights

# Enough for a mass within 2e-6 of 1, of 1,000 classes and any logits.
_NEWTON_STEPS = 12


@formula
def cross_entropy(c: Candidates) -> jax.Array:
    """Cross-entropy, `-log p_y`, as of optax; the value is held at 1e9, the gradient is not.

    References:
      Bridle, 1989. https://mlanthology.org/neurips/1989/bridle1989neurips-training
    """
    return -c.log_p()


@formula
def label_smoothing(c: Candidates, *, alpha: Annotated[float, Ge(0), Le(1)] = 0.1) -> jax.Array:
    """Cross-entropy against smoothed labels, `-(1 - alpha) log p_y - alpha mean_k log p_k`.

    Args:
      alpha: share of the label spread over the classes that take part, in [0, 1]; the paper's 0.1.

    References:
      Szegedy et al., 2016. https://arxiv.org/abs/1512.00567
    """
    return -(1 - alpha) * c.log_p() - alpha * c.mean(c.every_log_p)


@formula
def focal(c: Candidates, *, gamma: NotNegative = 2.0) -> jax.Array:
    """Focal loss, `-(1 - p_y)^gamma log p_y`, of a softmax instead of the paper's sigmoid.

    Args:
      gamma: how much confident examples count less, at least 0; the paper's 2.

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2017. https://arxiv.org/abs/1708.02002
    """
    return c.at(focal_of_every_class(c.every_log_p, gamma))


@formula
def poly(c: Candidates, *, epsilon: Annotated[float, Ge(-1)] = 2.0) -> jax.Array:
    """PolyLoss of the first order, `-log p_y + epsilon (1 - p_y)`.

    Args:
      epsilon: what the first coefficient gains, at least -1; the paper's 2 for images.

    References:
      Leng et al., 2022. https://arxiv.org/abs/2204.12511
    """
    return -c.log_p() + epsilon * c.miss()


@formula
def taylor_ce(c: Candidates, *, order: Annotated[int, Ge(1), Le(100)] = 2) -> jax.Array:
    """Taylor cross-entropy, `sum_{i=1}^order (1 - p_y)^i / i`.

    Args:
      order: number of terms, from 1, half of mean absolute error, to 100, nearly cross-entropy; of
        those in the paper, the smallest but 1.

    References:
      Feng et al., 2020. https://www.ijcai.org/proceedings/2020/305
    """
    miss = c.miss()
    total = jnp.zeros_like(miss)
    for i in range(order, 0, -1):  # Horner's rule
        total = (total + 1 / i) * miss
    return total


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
    cross-entropy, less the entropy of a soft label. The authors' code solves for lambda less well.

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

    values = _log_exp_t(x - _normalizer(x, mask, t), t)
    return values if mask is None else jnp.where(mask, values, FLOOR)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
@partial(jax.jit, static_argnums=2)  # or outside of one the loop was compiled in every call
def _normalizer(x: jax.Array, mask: jax.Array | None, t: float) -> jax.Array:
    """The number `[..., 1]` with which `exp_t(x - number)` sum to 1, by Newton's method."""

    def newton(_: Any, normalizer: jax.Array) -> jax.Array:
        # Mass^(1 - t) is concave in the normalizer, and linear where all logits are equal, so that
        # steps from below converge at once there and never overshoot elsewhere.
        log_p = _log_exp_t(x - normalizer, t)
        mass = jax.nn.logsumexp(log_p, axis=-1, where=mask, keepdims=True)
        slope = jnp.sum(jnp.exp(t * log_p - mass), axis=-1, where=mask, keepdims=True)
        return normalizer + jnp.expm1((t - 1) * mass) / ((t - 1) * slope)

    # At the largest logit the mass is at least 1.
    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.max(x, axis=-1, keepdims=True))


@_normalizer.defjvp
def _derivative(t: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # That of the equation: the mean over p_k^t. It holds the normalizer itself, so that all higher
    # derivatives are exact too.
    x, mask = primals
    normalizer = _normalizer(x, mask, t)
    powers = t * _log_exp_t(x - normalizer, t)
    weights = jax.nn.softmax(powers if mask is None else jnp.where(mask, powers, FLOOR))
    return normalizer, jnp.sum(weights * tangents[0], axis=-1, keepdims=True)


def _log_exp_t(u: jax.Array, t: float) -> jax.Array:
    """`log exp_t(u)` for a temperature above 1; as a logarithm of 1 + v, precise for t near 1."""
    return -jnp.log1p((1 - t) * u) / (t - 1)


def _log_t(log_u: jax.Array, t: float) -> jax.Array:
    """The tempered logarithm of `exp(log_u)`."""
    return log_u if t == 1 else jnp.expm1((1 - t) * log_u) / (1 - t)


def focal_of_every_class(log_p: jax.Array, gamma: jax.typing.ArrayLike) -> jax.Array:
    """`-(1 - p_k)^gamma log p_k` of every class, `[..., num_classes]`.

    The gradient of `log(1 - p_k)` is finite as `p_k` nears 1: of the most probable class it is the
    sum of the others; of those, `p_k` is at most 1/2.
    """
    is_top = jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1], dtype=bool)
    others = jnp.where(is_top, FLOOR, log_p)
    of_top = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    log_complement = jnp.where(is_top, of_top, jnp.log1p(-jnp.exp(others)))
    return -jnp.exp(gamma * log_complement) * log_p
