"""Metrics of a classifier on held-out images, from sums that batches and devices add up."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MEASURES = ("accuracy", "nll", "calibration_error")  # see `TrainResult`
NUM_BINS = 15


class Sums(NamedTuple):
    """Sums over images: correct ones, negative log-likelihoods, and both halves of calibration."""

    correct: jax.Array  # int32
    nll: jax.Array  # float32
    bin_confidence: jax.Array  # sum of the confidences in each bin of confidence, [NUM_BINS]
    bin_correct: jax.Array  # how many of each bin are correct, [NUM_BINS], int32


def sums_of(logits: jax.Array, labels: jax.Array) -> Sums:
    """The sums over logits `[n, num_classes]` and labels `[n]`; a label of -1 takes no part.

    Bin `m` of the confidences is `(m / NUM_BINS, (m + 1) / NUM_BINS]`.
    """
    counted = labels >= 0
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_p = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
    confidence = jnp.exp(jnp.max(log_probabilities, axis=-1))
    correct = (jnp.argmax(logits, axis=-1) == labels) & counted
    bins = jnp.clip(jnp.ceil(NUM_BINS * confidence).astype(jnp.int32) - 1, 0, NUM_BINS - 1)
    # Not a product of matrices, which an accelerator would round.
    in_bin = (bins[:, None] == jnp.arange(NUM_BINS)[None, :]) & counted[:, None]
    return Sums(
        jnp.sum(correct, dtype=jnp.int32),
        -jnp.sum(log_p, where=counted),
        jnp.sum(jnp.where(in_bin, confidence[:, None], 0.0), axis=0),
        jnp.sum(in_bin & correct[:, None], axis=0, dtype=jnp.int32),
    )


def metrics_of(sums: Sums, count: int) -> dict[str, float]:
    """The metrics of `count` images.

    The calibration error is `sum_m |sum of confidences - number correct| / count` over the bins
    (Guo et al., "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599).
    """
    gap = np.abs(sums.bin_confidence - sums.bin_correct).sum()
    totals = (sums.correct, sums.nll, gap)
    return {name: float(x) / count for name, x in zip(MEASURES, totals, strict=True)}
