"""Metrics of a classifier on held-out images, from sums that batches and devices add up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_BINS = 15


class Sums(NamedTuple):
    """Sums over images from which the metrics follow.

    Attributes:
      correct: how many are classified correctly, int32 scalar.
      nll: sum of their negative log-likelihoods, float32 scalar.
      bin_confidence: sum of the confidences in each bin of confidence, `[NUM_BINS]`, float32.
      bin_correct: how many of each bin are classified correctly, `[NUM_BINS]`, int32.
    """

    correct: jax.Array
    nll: jax.Array
    bin_confidence: jax.Array
    bin_correct: jax.Array


class Metrics(NamedTuple):
    """How well a classifier does on a split, an array of seeds each, `[num_seeds or 1]`, float64.

    Attributes:
      accuracy: share of the images that it classifies correctly.
      nll: mean negative log-likelihood of the labels, `-log softmax(logits)[label]`, in nats.
      calibration_error: expected calibration error in [0, 1]: how far confidence, the largest
        probability, is from accuracy in 15 bins of equal width, averaged over the images.
    """

    accuracy: np.ndarray
    nll: np.ndarray
    calibration_error: np.ndarray


def sums_of(logits: jax.Array, labels: jax.Array) -> Sums:
    """The sums over some images; a label of -1 takes no part.

    Bin `m` of the confidences is `(m / NUM_BINS, (m + 1) / NUM_BINS]`.

    Args:
      logits: `[n, num_classes]`, floating point.
      labels: `[n]`, int32.
    """
    counted = labels >= 0
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
    confidence = jnp.exp(jnp.max(log_probabilities, axis=-1))
    correct = (jnp.argmax(logits, axis=-1) == labels) & counted
    bins = jnp.clip(jnp.ceil(NUM_BINS * confidence).astype(jnp.int32) - 1, 0, NUM_BINS - 1)
    # Not a product of matrices, which an accelerator would round.
    in_bin = (bins[:, None] == jnp.arange(NUM_BINS)[None, :]) & counted[:, None]
    return Sums(
        jnp.sum(correct, dtype=jnp.int32),
        -jnp.sum(own, where=counted),
        jnp.sum(jnp.where(in_bin, confidence[:, None], 0.0), axis=0),
        jnp.sum(in_bin & correct[:, None], axis=0, dtype=jnp.int32),
    )


def metrics_of(sums: Sums, count: int) -> Metrics:
    """The metrics of `count` images.

    The calibration error is `sum_m |sum of confidences - number correct| / count` over the bins.

    Args:
      sums: over all of them, scalars and `[NUM_BINS]`, or with an axis of seeds in front.
      count: how many images there are.

    References:
      Guo et al., "On calibration of modern neural networks", ICML 2017,
      https://arxiv.org/abs/1706.04599
    """
    gaps = np.abs(sums.bin_confidence - sums.bin_correct).sum(axis=-1)
    return Metrics(*(np.atleast_1d(x) / count for x in (sums.correct, sums.nll, gaps)))
