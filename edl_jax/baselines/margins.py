"""Losses that ask for a margin between the label's logit and the others.

`ldam`, `large_margin_softmax` and `additive_margin_softmax` are made for a head whose logits are
cosines times a scale, `x_k = scale cos(theta_k)`, the angle being that between the features and the
weights of class k.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.baselines.common import (
    LOSSES,
    Candidates,
    check_count,
    check_number,
    per_example,
)
from edl_jax.baselines.cross_entropies import log_complement
from edl_jax.errors import ConfigError, InputError
from edl_jax.frozen.inputs import as_array, classes_last
from edl_jax.frozen.log_probabilities import hold

ArrayLike = jax.typing.ArrayLike


# Of logits that are cosines times a scale, and those whose `scale` is that of the logits.
COSINE_LOSSES = ("large_margin_softmax", "additive_margin_softmax")
MARGIN_LOSSES = ("ldam", *COSINE_LOSSES)


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
      where: mask of the classes.

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
      where: mask of the classes.

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


@LOSSES.register("ldam")
def ldam(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_counts: Sequence[int] | np.ndarray,
    max_margin: float = 0.5,
    scale: float = 30.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Label-distribution-aware margins: cross-entropy with `x_y - scale m_y` for `x_y`.

    Rare classes get the wider margins, `m_k = max_margin (n_min / n_k)^(1/4)` for `n_k` training
    examples. The authors' code scales the cosines inside the loss; here `logits` are scaled
    already, as for `additive_margin_softmax`. With `scale=1` it is the paper's loss of an ordinary
    head.

    Args:
      logits: `scale cos(theta_k)`, `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      class_counts: number of training examples of each class, `[num_classes]`, at least 1.
      max_margin: margin of the rarest class that takes part, at least 0; the authors' code's 0.5.
      scale: scale of the logits, more than 0; the authors' code's 30.
      axis: axis of the classes.
      where: mask of the classes.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.
      https://arxiv.org/abs/1906.07413
    """
    check_number("max_margin", max_margin, 0)
    check_number("scale", scale, 0, open_low=True)
    counts = np.asarray(class_counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iuf" or not (counts >= 1).all():
        raise ConfigError(
            f"class_counts is {class_counts!r}; expected the number of training examples of each "
            "class, at least 1."
        )

    def formula(c: Candidates) -> jax.Array:
        num_classes = c.logits.shape[-1]
        if len(counts) != num_classes:
            raise InputError(f"class_counts has {len(counts)} entries for {num_classes} classes.")
        n = jnp.asarray(counts, c.logits.dtype).reshape((1,) * (c.logits.ndim - 1) + (-1,))
        fewest = float(counts.min())
        if c.where is not None:
            fewest = jnp.min(n, axis=-1, where=c.where, initial=float(counts.max()), keepdims=True)
        margins = max_margin * (fewest / n) ** 0.25
        return _with_label_log_p(c, c.log_p() - scale * c.at(margins))

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("large_margin_softmax")
def large_margin_softmax(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    margin: int = 2,
    scale: ArrayLike = 30.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Large-margin softmax: cross-entropy with `scale psi(theta_y)` for `x_y`.

    `psi(theta) = (-1)^k cos(margin theta) - 2 k`, for theta from `k pi / margin` to
    `(k + 1) pi / margin`, falls from 1 at an angle of 0 to `1 - 2 margin` at pi. The paper mixes
    it with the cosine while training begins; that is not done here.

    Args:
      logits: `scale cos(theta_k)`, `[..., num_classes]`. Beyond `-scale` and `scale` the label's
        logit is held there.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      margin: the paper's m, a whole number from 1, which gives cross-entropy, to 8; the mildest
        margin of the paper's 2 to 4.
      scale: product of the norms of features and weights, more than 0: a number, or an array that
        broadcasts to the logits, through which gradients flow. The paper does not fix it; 30 is
        that of `additive_margin_softmax`.
      axis: axis of the classes.
      where: mask of the classes.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Liu et al., "Large-Margin Softmax Loss for Convolutional Neural Networks", 2016.
      https://arxiv.org/abs/1612.02295
    """
    check_count("margin", margin, 1, 8)
    if not isinstance(scale, jax.Array | np.ndarray):
        check_number("scale", scale, 0, open_low=True)
    shape = as_array("logits", logits).shape

    def formula(c: Candidates) -> jax.Array:
        norms, mask = classes_last("scale", scale, shape, axis).astype(c.logits.dtype), c.where
        if mask is not None:
            norms = jnp.where(mask, norms, 1.0)
            # Where no class takes part, any finite answer will do.
            mask |= ~jnp.any(mask, axis=-1, keepdims=True)
        norm = c.at(norms)
        safe = jnp.where(norm > 0, norm, 1.0)  # without length there is no angle; the logit is 0
        cosine = jnp.clip(c.at(c.logits) / safe, -1.0, 1.0)
        # Logits less this are log-probabilities.
        normaliser = jax.nn.logsumexp(c.logits, axis=-1, where=mask, keepdims=True)
        return _with_label_log_p(c, norm * _psi(cosine, margin) - normaliser)

    return per_example(formula, logits, labels, axis, where)


@LOSSES.register("additive_margin_softmax")
def additive_margin_softmax(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    margin: float = 0.35,
    scale: float = 30.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Additive-margin softmax: cross-entropy with `x_y - scale margin` for `x_y`.

    Args:
      logits: `scale cos(theta_k)`, `[..., num_classes]`.
      labels: classes `[...]`, or soft labels `[..., num_classes]`.
      margin: what is taken from the label's cosine, at least 0; the paper's 0.35.
      scale: scale of the logits, more than 0; the paper's 30.
      axis: axis of the classes.
      where: mask of the classes.

    Returns:
      Losses of at least 0, `[...]`, in the logits' dtype.

    Raises:
      InputError: if shapes, dtypes or labels do not fit.
      ConfigError: if an option is out of range.

    References:
      Wang et al., "Additive Margin Softmax for Face Verification", 2018.
      https://arxiv.org/abs/1801.05599
    """
    check_number("margin", margin, 0)
    check_number("scale", scale, 0, open_low=True)

    def formula(c: Candidates) -> jax.Array:
        return _with_label_log_p(c, c.log_p() - scale * margin)

    return per_example(formula, logits, labels, axis, where)


def _with_label_log_p(c: Candidates, value: jax.Array) -> jax.Array:
    """Cross-entropy `[..., n]` if `value`, `[..., n]`, were the logit in place of `log p_y`.

    The logits being `log p`, the others' exponentials sum to `1 - p_y`.
    """
    return jax.nn.softplus(c.at(log_complement(c.every_log_p)) - hold(value))


def _psi(cosine: jax.Array, margin: int) -> jax.Array:
    """`(-1)^k cos(margin theta) - 2 k` of `cos(theta)`.

    Chebyshev's polynomial gives `cos(margin theta)`: the arc cosine has no gradient at its ends.
    """
    before, multiple = jnp.ones_like(cosine), cosine
    for _ in range(margin - 1):
        before, multiple = multiple, 2 * cosine * multiple - before
    k = sum(cosine <= np.cos(i * np.pi / margin) for i in range(1, margin))
    k = jnp.asarray(k, cosine.dtype)
    return (1 - 2 * (k % 2)) * multiple - 2 * k
