"""How far two samples of prediction-label pairs are apart; plain functions of arrays, in float64.

Classes mean nothing here: all is seen through summaries that no relabelling of them changes.
"""

from collections.abc import Iterator

import numpy as np
import scipy

from edl_jax.errors import InputError
from edl_jax.pairs import Pairs

# What is said of a pair, and how an axis names it.
SUMMARIES = {
    "true_probability": "true-class probability",
    "runner_up_probability": "largest other probability",
    "entropy": "entropy, nats",
    "confidence": "largest probability",
    "rank": "rank of the true class",
}
_NEIGHBOURS = 3
_LEAST_PROBABILITY = 1e-6  # below it, and above 1 minus it, pairs count as equally sure
_ROWS_AT_A_TIME = 1000


def summarise_pairs(pairs: Pairs) -> dict[str, np.ndarray]:
    """The `SUMMARIES` of pairs, `[num_pairs]` each.

    The probability of the true class, the largest of the other classes, the entropy in nats, the
    largest probability, and the rank of the true class: 1 plus how many classes are more probable.
    """
    probabilities = np.asarray(pairs.probabilities, np.float64)
    is_label = np.arange(probabilities.shape[-1]) == np.asarray(pairs.labels)[:, None]
    true = probabilities[is_label]
    others = probabilities[~is_label].reshape(len(probabilities), -1)
    return {
        "true_probability": true,
        "runner_up_probability": others.max(axis=-1),
        "entropy": scipy.special.entr(probabilities).sum(axis=-1),
        "confidence": probabilities.max(axis=-1),
        "rank": 1.0 + (others > true[:, None]).sum(axis=-1),
    }


def coordinates(pairs: Pairs) -> np.ndarray:
    """Where pairs lie, `[num_pairs, 3]` in nats: distances between them are meant in this space.

    The logits of the true class's and of the largest other probability, `log p - log(1 - p)` with
    `p` held in [1e-6, 1 - 1e-6], and the entropy. Logits, because a probability of 0.001 and one of
    0.1 are not close to each other for a loss.
    """
    found = summarise_pairs(pairs)
    held = [
        np.clip(found[name], _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        for name in ("true_probability", "runner_up_probability")
    ]
    return np.stack([*(scipy.special.logit(p) for p in held), found["entropy"]], axis=-1)


def median_distance(points: np.ndarray) -> float:
    """Median Euclidean distance of different points, `[n, d]`: the usual bandwidth of a kernel.

    Raises:
      InputError: if it is 0, so that no kernel could have it.
    """
    median = float(np.median(scipy.spatial.distance.pdist(points)))
    if not median > 0:
        raise InputError("more than half of the points are equal; expected points that differ.")
    return median


def mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two samples.

    With the kernel `k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2))`,
    `mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)`.
    Its expectation is 0 for samples of one distribution, so the estimate can be below 0.

    Args:
      x: `[n, d]`, n at least 2.
      y: `[m, d]`, m at least 2.
      bandwidth: width of the kernel, such as `median_distance` of one of them.

    References:
      Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A kernel two-sample test", JMLR 2012,
      https://jmlr.org/papers/v13/gretton12a.html
    """

    def total(a: np.ndarray, b: np.ndarray) -> float:
        blocks = _squared_distances(a, b)
        return sum(float(np.exp(-squared / (2 * bandwidth**2)).sum()) for squared in blocks)

    n, m = len(x), len(y)
    within_x = (total(x, x) - n) / (n * (n - 1))
    within_y = (total(y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2 * total(x, y) / (n * m)


def is_covered(points: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Which points lie inside the support of a sample, `[n]` booleans.

    The support is estimated as the union of balls around the sample's points, each reaching to its
    third-nearest other point. The balls shrink as the sample grows, so compare shares of samples of
    one size, and with the share of a fresh sample of the same distribution, which is below 1.

    Args:
      points: `[n, d]`.
      support: the sample, `[m, d]`, m more than 3.

    References:
      Kynkäänniemi, Karras, Laine, Lehtinen and Aila, "Improved precision and recall metric for
      assessing generative models", NeurIPS 2019, https://arxiv.org/abs/1904.06991
    """
    near, _ = scipy.spatial.KDTree(support).query(support, _NEIGHBOURS + 1)  # itself is the first
    # A distance that is the radius but for rounding is inside.
    radii = near[:, -1] ** 2 * (1 + 1e-12)
    blocks = _squared_distances(points, support)
    return np.concatenate([(squared <= radii).any(axis=1) for squared in blocks])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Of all of a to all of b, some rows at a time: memory grows with b only."""
    for first in range(0, len(a), _ROWS_AT_A_TIME):
        yield scipy.spatial.distance.cdist(a[first : first + _ROWS_AT_A_TIME], b, "sqeuclidean")
