"""Cross-entropy and the losses that bend it: smoothing, focal, polynomial and normalised."""

import jax
import jax.numpy as jnp

from edl_jax.losses.lift import Candidates, check_number, formula, one_hot
from edl_jax.losses.log_probabilities import FLOOR


@formula
def cross_entropy(c: Candidates) -> jax.Array:
    """Cross-entropy, `-log p_y`.

    As `optax.losses.softmax_cross_entropy_with_integer_labels` and `softmax_cross_entropy`. The
    value is held at 1e9, the gradient is not.

    References:
      Bridle, "Training Stochastic Model Recognition Algorithms as Networks can Lead to Maximum
      Mutual Information Estimation of Parameters", 1989.
      https://mlanthology.org/neurips/1989/bridle1989neurips-training
    """
    return -c.log_p()


@formula
def label_smoothing(c: Candidates, *, alpha: float = 0.1) -> jax.Array:
    """Cross-entropy against smoothed labels, `-(1 - alpha) log p_y - alpha mean_k log p_k`.

    The label that `optax.losses.smooth_labels` makes; under a mask, it is spread over the classes
    that take part.

    Args:
      alpha: share of the label spread over all classes, in [0, 1]; the paper's 0.1.

    References:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016.
      https://arxiv.org/abs/1512.00567
    """
    check_number("alpha", alpha, 0, 1)
    return -(1 - alpha) * c.log_p() - alpha * c.mean(c.every_log_p)


@formula
def focal(c: Candidates, *, gamma: float = 2.0) -> jax.Array:
    """Focal loss on the softmax, `-(1 - p_y)^gamma log p_y`.

    The paper states it for a sigmoid (`optax.losses.sigmoid_focal_loss`) and weights classes too;
    this is its usual form for one label among several classes, without weights.

    Args:
      gamma: how much confident examples count less, at least 0; the paper's 2.

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2017. https://arxiv.org/abs/1708.02002
    """
    check_number("gamma", gamma, 0)
    return c.at(focal_of_every_class(c.every_log_p, gamma))


@formula
def poly(c: Candidates, *, epsilon: float = 2.0) -> jax.Array:
    """PolyLoss of the first order, `-log p_y + epsilon (1 - p_y)`.

    As `optax.losses.poly_loss_cross_entropy`.

    Args:
      epsilon: what is added to the polynomial's first coefficient, at least -1; the paper's 2 for
        image classification.

    References:
      Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
      2022. https://arxiv.org/abs/2204.12511
    """
    check_number("epsilon", epsilon, -1)
    return -c.log_p() + epsilon * c.miss()


@formula
def taylor_ce(c: Candidates, *, order: int = 2) -> jax.Array:
    """Taylor cross-entropy, `sum_{i=1}^order (1 - p_y)^i / i`.

    The first terms of `-log p_y` in powers of `1 - p_y`: half of mean absolute error at order 1,
    cross-entropy as the order grows.

    Args:
      order: number of terms, from 1 to 1000; of the few that the paper tries, the smallest between
        its two limits.

    References:
      Feng et al., "Can Cross Entropy Loss Be Robust to Label Noise?", 2020.
      https://www.ijcai.org/proceedings/2020/305
    """
    check_number("order", order, 1, 1000, whole=True)
    miss = c.miss()
    coefficients = jnp.asarray([1 / i for i in range(order, 0, -1)], miss.dtype)
    # Not by `jnp.polyval`, which has no answer for arrays whose types hold a sharding.
    return jax.lax.scan(
        lambda total, coefficient: ((total + coefficient) * miss, None),
        jnp.zeros_like(miss),
        coefficients,
        unroll=16,
    )[0]


def focal_of_every_class(log_p: jax.Array, gamma: jax.typing.ArrayLike) -> jax.Array:
    """`-(1 - p_k)^gamma log p_k` of every class, `[..., num_classes]`.

    The gradient of `log(1 - p_k)` is finite as `p_k` nears 1: of the most probable class it is the
    sum of the others; of those, `p_k` is at most 1/2.
    """
    is_top = one_hot(jnp.argmax(log_p, axis=-1), log_p) > 0
    others = jnp.where(is_top, FLOOR, log_p)
    of_top = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    log_complement = jnp.where(is_top, of_top, jnp.log1p(-jnp.exp(others)))
    return -jnp.exp(gamma * log_complement) * log_p
