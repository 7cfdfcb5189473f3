"""Losses that ask for a margin between the label's logit and the others.

`ldam`, `large_margin_softmax` and `additive_margin_softmax` are made for a head whose logits are
cosines times a scale, `x_k = scale cos(theta_k)`, the angle being that between the features and the
weights of class k.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import ConfigError, InputError
from edl_jax.losses.lift import Candidates, check_number, formula, one_hot
from edl_jax.losses.log_probabilities import FLOOR, hold

# Of logits that are cosines times a scale, and those whose `scale` is that of the logits.
COSINE_LOSSES = ("large_margin_softmax", "additive_margin_softmax")
MARGIN_LOSSES = ("ldam", *COSINE_LOSSES)


@formula
def ldam(
    c: Candidates,
    *,
    class_counts: Sequence[int] | np.ndarray,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> jax.Array:
    """Label-distribution-aware margins: cross-entropy with `x_y - scale m_y` for `x_y`.

    Rare classes get the wider margins, `m_k = max_margin (n_min / n_k)^(1/4)` for `n_k` training
    examples. The authors' code scales the cosines inside the loss; here `logits` are
    `scale cos(theta_k)` already, as for `additive_margin_softmax`. With `scale=1` it is the paper's
    loss of an ordinary head.

    Args:
      class_counts: number of training examples of each class, `[num_classes]`, at least 1.
      max_margin: margin of the rarest class that takes part, at least 0; the authors' code's 0.5.
      scale: scale of the logits, more than 0; the authors' code's 30.

    References:
      Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.
      https://arxiv.org/abs/1906.07413
    """
    check_number("max_margin", max_margin, 0)
    check_number("scale", scale, 0, open_low=True)
    num_classes = c.logits.shape[-1]
    try:
        counts = np.asarray(class_counts)
    except (TypeError, ValueError):  # traced, or lists within that differ in length
        counts = np.zeros(())
    if counts.ndim != 1 or counts.dtype.kind not in "iuf" or not (counts >= 1).all():
        raise ConfigError(
            f"class_counts is {class_counts!r}; expected the number of training examples of each "
            "class, at least 1, and not traced."
        )
    if len(counts) != num_classes:
        raise InputError(f"class_counts has {len(counts)} entries for {num_classes} classes.")
    n = jnp.asarray(counts, c.logits.dtype).reshape((1,) * (c.logits.ndim - 1) + (-1,))
    fewest = float(counts.min())
    if c.where is not None:
        fewest = jnp.min(n, axis=-1, where=c.where, initial=float(counts.max()), keepdims=True)
    margins = max_margin * (fewest / n) ** 0.25
    return _with_label_logit(c, c.at(c.logits - scale * margins))


@formula
def large_margin_softmax(c: Candidates, *, margin: int = 2, scale: float = 30.0) -> jax.Array:
    """Large-margin softmax: cross-entropy with `scale psi(theta_y)` for `x_y`.

    `psi(theta) = (-1)^k cos(margin theta) - 2 k`, for theta from `k pi / margin` to
    `(k + 1) pi / margin`, falls from 1 at an angle of 0 to `1 - 2 margin` at pi. The paper mixes
    it with the cosine while training begins; that is not done here. Logits are
    `scale cos(theta_k)`; beyond `-scale` and `scale` the label's is held there.

    Args:
      margin: the paper's m, a whole number from 1, which gives cross-entropy, to 8; the mildest
        margin of the paper's 2 to 4.
      scale: product of the norms of features and weights, more than 0. The paper does not fix it;
        30 is that of `additive_margin_softmax`.

    References:
      Liu et al., "Large-Margin Softmax Loss for Convolutional Neural Networks", 2016.
      https://arxiv.org/abs/1612.02295
    """
    check_number("margin", margin, 1, 8, whole=True)
    check_number("scale", scale, 0, open_low=True)
    cosine = jnp.clip(c.at(c.logits) / scale, -1.0, 1.0)
    return _with_label_logit(c, scale * _psi(cosine, margin))


@formula
def additive_margin_softmax(
    c: Candidates, *, margin: float = 0.35, scale: float = 30.0
) -> jax.Array:
    """Additive-margin softmax: cross-entropy with `x_y - scale margin` for `x_y`.

    Logits are `scale cos(theta_k)`.

    Args:
      margin: what is taken from the label's cosine, at least 0; the paper's 0.35.
      scale: scale of the logits, more than 0; the paper's 30.

    References:
      Wang et al., "Additive Margin Softmax for Face Verification", 2018.
      https://arxiv.org/abs/1801.05599
    """
    check_number("margin", margin, 0)
    check_number("scale", scale, 0, open_low=True)
    return _with_label_logit(c, c.at(c.logits) - scale * margin)


def _with_label_logit(c: Candidates, value: jax.Array) -> jax.Array:
    """Cross-entropy `[..., n]` of logits whose entry for the label is replaced by `value`.

    It is `softplus(log sum_{j != y} exp(x_j) - value)`, and of all labels but the first of the
    largest logit, that sum is the whole one less a part of at most a half.
    """
    x = c.logits if c.where is None else jnp.where(c.where, c.logits, jnp.finfo(value.dtype).min)
    is_first = one_hot(jnp.argmax(x, axis=-1), x) > 0
    others = jnp.where(is_first, jnp.finfo(x.dtype).min, x)
    top, second = (
        jax.lax.stop_gradient(jnp.max(values, axis=-1, keepdims=True)) for values in (x, others)
    )
    of_first = jax.nn.logsumexp(hold(others - second), axis=-1, keepdims=True)  # less `second`
    whole = jax.nn.logsumexp(hold(x - top), axis=-1, keepdims=True)  # less `top`, as its parts
    part = jnp.exp(jnp.where(is_first, FLOOR, c.every_log_p))
    log_sum = c.at(jnp.where(is_first, of_first, whole + jnp.log1p(-part)))
    return jax.nn.softplus(log_sum - hold(value - c.at(jnp.where(is_first, second, top))))


def _psi(cosine: jax.Array, margin: int) -> jax.Array:
    """`(-1)^k cos(margin theta) - 2 k` of `cos(theta)`.

    Chebyshev's polynomial gives `cos(margin theta)`: the arc cosine has no gradient at its ends.
    """
    before, multiple = jnp.ones_like(cosine), cosine
    for _ in range(margin - 1):
        before, multiple = multiple, 2 * cosine * multiple - before
    edges = [np.cos(i * np.pi / margin) for i in range(1, margin)]
    k = sum(((cosine <= edge).astype(cosine.dtype) for edge in edges), jnp.zeros_like(cosine))
    return (1 - 2 * (k % 2)) * multiple - 2 * k
