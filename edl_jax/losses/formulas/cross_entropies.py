"""Cross-entropy and the losses that bend it: smoothing, focal, polynomial and normalised."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from edl_jax.checked import NotNegative
from edl_jax.losses.inputs import FLOOR
from edl_jax.losses.lift import Candidates, formula, one_hot


@formula
def cross_entropy(c: Candidates) -> jax.Array:
    """Cross-entropy, `-log p_y`.

    As `optax.losses.softmax_cross_entropy`. The value is held at 1e9, the gradient is not.

    References:
      Bridle, 1989. https://mlanthology.org/neurips/1989/bridle1989neurips-training
    """
    return -c.log_p()


@formula
def label_smoothing(c: Candidates, *, alpha: Annotated[float, Ge(0), Le(1)] = 0.1) -> jax.Array:
    """Cross-entropy against smoothed labels, `-(1 - alpha) log p_y - alpha mean_k log p_k`.

    As of `optax.losses.smooth_labels`; a mask leaves the classes that take part.

    Args:
      alpha: share of the label spread over all classes, in [0, 1]; the paper's 0.1.

    References:
      Szegedy et al., 2016. https://arxiv.org/abs/1512.00567
    """
    return -(1 - alpha) * c.log_p() - alpha * c.mean(c.every_log_p)


@formula
def focal(c: Candidates, *, gamma: NotNegative = 2.0) -> jax.Array:
    """Focal loss on the softmax, `-(1 - p_y)^gamma log p_y`.

    The usual form, without class weights, for one label among several classes; the paper's is for
    a sigmoid (`optax.losses.sigmoid_focal_loss`).

    Args:
      gamma: how much confident examples count less, at least 0; the paper's 2.

    References:
      Lin et al., "Focal Loss for Dense Object Detection", 2017. https://arxiv.org/abs/1708.02002
    """
    return c.at(focal_of_every_class(c.every_log_p, gamma))


@formula
def poly(c: Candidates, *, epsilon: Annotated[float, Ge(-1)] = 2.0) -> jax.Array:
    """PolyLoss of the first order, `-log p_y + epsilon (1 - p_y)`.

    As `optax.losses.poly_loss_cross_entropy`.

    Args:
      epsilon: what the first coefficient gains, at least -1; the paper's 2 for images.

    References:
      Leng et al., 2022. https://arxiv.org/abs/2204.12511
    """
    return -c.log_p() + epsilon * c.miss()


@formula
def taylor_ce(c: Candidates, *, order: Annotated[int, Ge(1), Le(100)] = 2) -> jax.Array:
    """Taylor cross-entropy, `sum_{i=1}^order (1 - p_y)^i / i`.

    Half of mean absolute error at order 1, cross-entropy as the order grows.

    Args:
      order: number of terms, from 1 to 100; of those in the paper, the smallest but 1.

    References:
      Feng et al., 2020. https://www.ijcai.org/proceedings/2020/305
    """
    miss = c.miss()
    total = jnp.zeros_like(miss)
    for i in range(order, 0, -1):  # Horner's rule
        total = (total + 1 / i) * miss
    return total


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
