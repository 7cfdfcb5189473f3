"""Losses that ask for a margin between the label's logit and the others.

`ldam` is for a head whose logits are cosines times a scale, `x_k = scale cos(theta_k)`, of the
angles between the features and the weights of the classes.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.checked import NotNegative, Positive
from edl_jax.errors import ConfigError
from edl_jax.losses.inputs import FLOOR, hold
from edl_jax.losses.lift import Candidates, formula


@formula
def multiclass_hinge(c: Candidates) -> jax.Array:
    """Multiclass hinge loss, `max(0, 1 + max_{j != y} x_j - x_y)`, as of optax.

    References:
      Crammer and Singer, 2001. https://www.jmlr.org/papers/v2/crammer01a.html
    """
    return jnp.maximum(0, 1 + c.runner_up() - c.log_p())


@formula
def smoothed_zero_one(c: Candidates, *, sharpness: Positive = 1.0) -> jax.Array:
    """Smoothed 0-1 loss, `1 / (1 + exp(sharpness (x_y - max_{j != y} x_j)))`.

    Args:
      sharpness: the paper's K, of a binary margin, more than 0; 1 is ours.

    References:
      Nguyen and Sanner, 2013. https://proceedings.mlr.press/v28/nguyen13a.html
    """
    return jax.nn.sigmoid(sharpness * (c.runner_up() - c.log_p()))


@functools.partial(formula, scale_of="logits")
def ldam(
    c: Candidates,
    *,
    class_counts: Sequence[int] | np.ndarray,
    max_margin: NotNegative = 0.5,
    scale: Positive = 30.0,
) -> jax.Array:
    """Label-distribution-aware margins: cross-entropy with `x_y - scale m_y` for `x_y`.

    Rare classes get the wider margins, `m_k = max_margin (n_min / n_k)^(1/4)` for `n_k` training
    examples. With `scale=1` it is the paper's loss of an ordinary head.

    Args:
      class_counts: number of training examples of each class, `[num_classes]`, at least 1.
      max_margin: margin of the rarest class that takes part, at least 0; the authors' code's 0.5.
      scale: scale of the logits, more than 0; the authors' code's 30.

    References:
      Cao et al., 2019. https://arxiv.org/abs/1906.07413
    """
    num_classes, counts = c.logits.shape[-1], np.asarray(class_counts)
    if counts.shape != (num_classes,) or counts.dtype.kind not in "iuf" or counts.min() < 1:
        raise ConfigError(
            f"class_counts is {class_counts!r}; expected the number of training examples, at least "
            f"1, of each of {num_classes} classes."
        )
    n = jnp.asarray(counts, c.logits.dtype).reshape((1,) * (c.logits.ndim - 1) + (-1,))
    fewest = jnp.min(n, axis=-1, where=c.where, initial=float(counts.max()), keepdims=True)
    margins = max_margin * (fewest / n) ** 0.25
    return _with_label_logit(c, c.at(c.logits - scale * margins))


def _with_label_logit(c: Candidates, value: jax.Array) -> jax.Array:
    """Cross-entropy `[..., n]` of logits whose entry for the label is replaced by `value`.

    It is `softplus(log sum_{j != y} exp(x_j) - value)`, and of all labels but the first of the
    largest logit, that sum is the whole one less a part of at most a half.
    """
    x = c.logits if c.where is None else jnp.where(c.where, c.logits, jnp.finfo(value.dtype).min)
    is_first = jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=bool)
    others = jnp.where(is_first, jnp.finfo(x.dtype).min, x)
    top, second = (
        jax.lax.stop_gradient(jnp.max(values, axis=-1, keepdims=True)) for values in (x, others)
    )
    of_first = jax.nn.logsumexp(hold(others - second), axis=-1, keepdims=True)  # less `second`
    whole = jax.nn.logsumexp(hold(x - top), axis=-1, keepdims=True)  # less `top`, as its parts
    part = jnp.exp(jnp.where(is_first, FLOOR, c.every_log_p))
    log_sum = c.at(jnp.where(is_first, of_first, whole + jnp.log1p(-part)))
    return jax.nn.softplus(log_sum - hold(value - c.at(jnp.where(is_first, second, top))))
