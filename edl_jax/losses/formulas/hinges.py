"""Losses of the margin by which the label's logit exceeds the runner-up's."""

import jax
import jax.numpy as jnp

from edl_jax.checked import Positive
from edl_jax.losses.lift import Candidates, formula


@formula
def multiclass_hinge(c: Candidates) -> jax.Array:
    """Multiclass hinge loss, `max(0, 1 + max_{j != y} x_j - x_y)`.

    As `optax.losses.multiclass_hinge_loss`: Crammer and Singer's form, for several classes, of
    Gentile and Warmuth's linear hinge loss.

    References:
      Gentile and Warmuth, 1998. https://proceedings.neurips.cc/paper/1998/hash/a14ac55a4f27472c5d894ec1c3c743d2-Abstract.html
      Crammer and Singer, 2001. https://www.jmlr.org/papers/v2/crammer01a.html
    """
    return jnp.maximum(0, 1 + c.runner_up() - c.log_p())


@formula
def smoothed_zero_one(c: Candidates, *, sharpness: Positive = 1.0) -> jax.Array:
    """Smoothed 0-1 loss, `1 / (1 + exp(sharpness (x_y - max_{j != y} x_j)))`.

    The paper's sigmoid of a binary margin, with the margin over the runner-up in its place.

    Args:
      sharpness: the paper's K, more than 0, which it raises while it optimises; 1 is ours.

    References:
      Nguyen and Sanner, 2013. https://proceedings.mlr.press/v28/nguyen13a.html
    """
    return jax.nn.sigmoid(sharpness * (c.runner_up() - c.log_p()))
