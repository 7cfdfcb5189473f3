"""How far two samples of prediction-label pairs are apart; plain functions of arrays, in float64.

Classes mean nothing here: all is seen through summaries that no relabelling of them changes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy

from edl_jax.errors import InputError
from edl_jax.pairs import Pairs

# What is said of a pair, and how an axis or a heading names it.
SUMMARIES = {
    "true_probability": "true-class probability",
    "rival_probability": "rival probability",
    "entropy": "entropy, nats",
    "confidence": "largest probability",
    "rank": "rank of the true class",
}
BINS = 20
NEIGHBOURS = 3
LEAST_PROBABILITY = 1e-6  # below it, and above 1 minus it, pairs count as equally sure
_ROWS_AT_A_TIME = 1000


class TwoSample(NamedTuple):
    """What a classifier that tries to tell two samples apart achieves on pairs it has not seen.

    Attributes:
      accuracy: its accuracy; 0.5 is chance.
      p: one-sided p-value of being better than chance.
    """

    accuracy: float
    p: float


def summarise_pairs(pairs: Pairs) -> dict[str, np.ndarray]:
    """The `SUMMARIES` of pairs, `[num_pairs]` each.

    The probability of the true class, that of the strongest rival (the most probable other class),
    the entropy in nats, the largest probability, and the rank of the true class: 1 plus how many
    classes are more probable.
    """
    probabilities = np.asarray(pairs.probabilities, np.float64)
    true, others = _split_off(probabilities, np.asarray(pairs.labels))
    return {
        "true_probability": true,
        "rival_probability": others.max(axis=-1),
        "entropy": scipy.special.entr(probabilities).sum(axis=-1),
        "confidence": probabilities.max(axis=-1),
        "rank": 1.0 + (others > true[:, None]).sum(axis=-1),
    }


def coordinates(pairs: Pairs) -> np.ndarray:
    """Where pairs lie, `[num_pairs, 3]` in nats: distances between them are meant in this space.

    The logits of the true class's and of the strongest rival's probability, `log p - log(1 - p)`
    with `p` held in [1e-6, 1 - 1e-6], and the entropy. Logits, because a probability of 0.001 and
    one of 0.1 are not close to each other for a loss.
    """
    found = summarise_pairs(pairs)
    held = [
        np.clip(found[name], LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        for name in ("true_probability", "rival_probability")
    ]
    return np.stack([*(scipy.special.logit(p) for p in held), found["entropy"]], axis=-1)


def edges_of(summary: str, num_classes: int) -> np.ndarray:
    """Edges of equal bins that a summary's histogram has: 20, or one for each rank if fewer."""
    if summary == "rank":
        return np.linspace(0.5, num_classes + 0.5, min(BINS, num_classes) + 1)
    return np.linspace(0.0, np.log(num_classes) if summary == "entropy" else 1.0, BINS + 1)


def divergence(x: np.ndarray, y: np.ndarray, edges: np.ndarray) -> float:
    """Jensen-Shannon divergence of two samples' histograms, in bits: 0 if equal, 1 if apart.

    Args:
      x: `[n]`.
      y: `[m]`.
      edges: edges of the bins, increasing; what lies outside counts to the outermost bin.

    References:
      Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information
      Theory 1991. (scipy's function gives its root.)
    """
    counts = [np.histogram(np.clip(z, edges[0], edges[-1]), edges)[0] for z in (x, y)]
    return float(scipy.spatial.distance.jensenshannon(*counts, base=2)) ** 2


def median_distance(points: np.ndarray) -> float:
    """Median Euclidean distance of different points, `[n, d]`: the usual bandwidth of a kernel.

    Raises:
      InputError: if it is 0, so that no kernel could have it.
    """
    median = float(np.median(scipy.spatial.distance.pdist(points)))
    if not median > 0:
        raise InputError("more than half of the points are equal; expected points that differ.")
    return median


def mean_discrepancy(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
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


def two_sample_test(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> TwoSample:
    """Whether a classifier can tell two samples apart (classifier two-sample test).

    Gradient-boosted trees learn on a random half of each sample and are tested on the other. As
    many of one as of the other are used. The p-value is Fisher's exact test of predicted against
    true sample, on the tested half: exact, whatever the trees learned, if both samples are
    independent draws of one distribution.

    Args:
      x: `[n, d]`, n at least 4.
      y: `[m, d]`, m at least 4.
      seed: of the halves.

    Raises:
      ModuleNotFoundError: if scikit-learn is not installed.

    References:
      Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017,
      https://arxiv.org/abs/1610.06545
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    rng, size = np.random.default_rng(seed), min(len(x), len(y))
    shuffled = [rng.permutation(z)[:size] for z in (x, y)]
    train, test = ([z[part] for z in shuffled] for part in (np.s_[: size // 2], np.s_[size // 2 :]))
    trees = HistGradientBoostingClassifier(max_iter=30, random_state=seed)
    with threadpool_limits(1):  # so few points: threads would wait for one another
        trees.fit(np.concatenate(train), np.repeat([0, 1], [len(z) for z in train]))
        said_y = [int(trees.predict(z).sum()) for z in test]
    each = len(test[0])
    table = [[each - said_y[0], said_y[0]], [each - said_y[1], said_y[1]]]
    p = float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)  # pyright: ignore
    return TwoSample((table[0][0] + table[1][1]) / (2 * each), p)


def is_covered(points: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Which points lie inside the support of a sample, `[n]` booleans.

    The support is estimated as the union of balls around the sample's points, each reaching to its
    third-nearest other point. (The share of points inside is the "precision" of the reference.) The
    balls shrink as the sample grows, so compare shares of samples of one size, and with the share
    of a fresh sample of the same distribution, which is below 1.

    Args:
      points: `[n, d]`.
      support: the sample, `[m, d]`, m more than 3.

    Raises:
      ModuleNotFoundError: if scikit-learn is not installed.

    References:
      Kynkäänniemi, Karras, Laine, Lehtinen and Aila, "Improved precision and recall metric for
      assessing generative models", NeurIPS 2019, https://arxiv.org/abs/1904.06991
    """
    from sklearn.neighbors import NearestNeighbors

    # Asked without points, it leaves each point itself out.
    near, _ = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(support).kneighbors()
    blocks = _squared_distances(points, support)
    return np.concatenate([(squared <= near[:, -1] ** 2).any(axis=1) for squared in blocks])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Of all of a to all of b, some rows at a time: memory grows with b only."""
    for first in range(0, len(a), _ROWS_AT_A_TIME):
        yield scipy.spatial.distance.cdist(a[first : first + _ROWS_AT_A_TIME], b, "sqeuclidean")


def _split_off(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values `[n]` of the labels among `[n, num_classes]`, and those of the other classes."""
    is_label = np.arange(values.shape[-1]) == labels[:, None]
    return values[is_label], values[~is_label].reshape(len(values), -1)
