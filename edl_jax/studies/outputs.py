"""Outputs of a training, and how far they are from the synthetic pairs, whatever the classes."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy

from edl_jax.data.datasets import load_dataset
from edl_jax.errors import DivergedError
from edl_jax.losses import EvolvedLoss
from edl_jax.objective import MARGINS, SEVERITIES, measure
from edl_jax.pairs import REGIMES, Mixture, Pairs, sample_pairs
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import as_finite
from edl_jax.training import TrainConfig
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import AXIS
from edl_jax.training.training import resolve_config_loss

MIXTURE = "mixture"
RANKING = ("pairwise_accuracy", "violated_margins", "gradient_ratio")
_NEIGHBOURS = 3
_LEAST_PROBABILITY = 1e-6  # below it, and above 1 minus it, pairs count as equally sure


def record(
    train: TrainConfig, *, epochs: Sequence[int], num_outputs: int
) -> dict[int, dict[str, Pairs]]:
    """Outputs of one training by epoch and split, of the same images for every epoch and seed.

    Of train images they are as the loss sees them: in whole batches, augmented and with the
    statistics of the batch. Held-out images are of "val", or of "test" where there are none.
    """
    data = load_dataset(train.data)
    functions = TrainFunctions(train, data, resolve_config_loss(train, data), device_mesh(AXIS))
    batches = min(num_outputs, len(data.train_labels)) // train.batch_size
    counts = {"train": max(batches, 1) * train.batch_size}
    counts["val" if train.data.val_examples else "test"] = num_outputs
    key_init, key = jax.random.split(jax.random.key(train.seed))
    state, found = functions.init(key_init), {}
    for epoch in range(epochs[-1] + 1):
        if epoch:
            state = functions.advance(state, key, functions.steps_per_epoch)
            if np.any(jax.device_get(state.failed_step) >= 0):
                raise DivergedError(f"training diverged in epoch {epoch}; lower the learning rate.")
        for split, count in counts.items() if epoch in epochs else ():
            labels = getattr(data, f"{split}_labels")
            rows = np.random.default_rng(0).permutation(len(labels))[:count]
            logits = functions.outputs(state, key, split, rows).astype(np.float32)
            probabilities: Any = np.asarray(jax.nn.softmax(logits))
            pairs = Pairs(probabilities, labels[rows], np.full_like(labels[rows], -1))  # no regime
            found.setdefault(epoch, {})[split] = pairs
    return found


@functools.lru_cache(maxsize=2)
def draw_references(count: int, num_classes: int, mixture: Mixture) -> tuple[Any, Pairs]:
    """Always the same pairs: of the mixture and of each regime, by name; and fresh, a control."""
    keys = jax.random.split(jax.random.key(0), 3)
    draw = functools.partial(sample_pairs, num_classes=num_classes)
    mixed, fresh = (jax.device_get(draw(key, count, mixture=mixture)) for key in keys[:2])
    pool = jax.device_get(draw(keys[2], count * len(REGIMES)))  # exactly as many of each
    regimes = {
        name: jax.tree.map(lambda x, index=index: x[pool.regimes == index], pool)
        for index, name in enumerate(REGIMES)
    }
    return {MIXTURE: mixed, **regimes}, fresh


def compare_outputs(
    pairs: Pairs, references: Mapping[str, Pairs], evolved: EvolvedLoss
) -> list[dict[str, Any]]:
    """A row for each reference: `coverage`, the share of pairs inside its support, and `mmd`.

    The mixture's, the first, also has the accuracy, `correct`, and the evolved loss's ranking.
    """
    points, rows = coordinates(pairs), []
    supports = {name: coordinates(reference) for name, reference in references.items()}
    # The usual width, and one for all, so that the discrepancies can be compared.
    width = float(np.median(scipy.spatial.distance.pdist(supports[MIXTURE])))
    for name, support in supports.items():
        covered = float(is_covered(points, support).mean())
        rows.append({"reference": name, "coverage": covered, "mmd": mmd(points, support, width)})
    rows[0]["correct"] = float((pairs.probabilities.argmax(-1) == pairs.labels).mean())
    rows[0] |= as_finite(rank_outputs(pairs, evolved))
    return rows


def rank_outputs(pairs: Pairs, loss: EvolvedLoss) -> dict[str, float]:
    """Ranking of a loss's network, whose scale is that of the margins, and its gradient."""
    severity = SEVERITIES[loss.provenance.config.get("severity", "surprisal")]
    margin = MARGINS[loss.provenance.config.get("margin", "proportional")]
    network = loss.replace(scale=np.float32(1))
    found = measure(network, pairs, severity=severity, margin=margin, scale=loss.scale)
    return {name: found[name] for name in RANKING}


def coordinates(pairs: Pairs) -> np.ndarray:
    """Where pairs lie, `[num_pairs, 3]` float64 in nats: the space of all distances.

    The logits of the true class's and of the largest other probability, and the entropy.
    """
    p = np.asarray(pairs.probabilities, np.float64)
    is_label = np.arange(p.shape[-1]) == np.asarray(pairs.labels)[:, None]
    largest = np.stack([p[is_label], np.where(is_label, 0, p).max(axis=-1)], axis=-1)
    held = np.clip(largest, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    entropy = scipy.special.entr(p).sum(axis=-1, keepdims=True)
    return np.concatenate([scipy.special.logit(held), entropy], axis=-1)


def mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of samples `[n, d]` and `[m, d]`.

    Its kernel is Gaussian; it may be below 0. Gretton et al., JMLR 2012,
    https://jmlr.org/papers/v13/gretton12a.html
    """

    def total(a: np.ndarray, b: np.ndarray) -> float:
        squared = scipy.spatial.distance.cdist(a, b, "sqeuclidean")
        return float(np.exp(-squared / (2 * bandwidth**2)).sum())

    n, m = len(x), len(y)
    within_x = (total(x, x) - n) / (n * (n - 1))
    within_y = (total(y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2 * total(x, y) / (n * m)


def is_covered(points: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Which points `[n, d]` lie inside the support of a sample `[m, d]`, `[n]` booleans.

    The support is the union of balls around the sample's points, each reaching to its third-nearest
    other point; they shrink as the sample grows. Kynkäänniemi et al., NeurIPS 2019,
    https://arxiv.org/abs/1904.06991
    """
    near, _ = scipy.spatial.KDTree(support).query(support, _NEIGHBOURS + 1)  # itself is the first
    radii = near[:, -1] * (1 + 1e-12)  # a distance that is the radius but for rounding is inside
    return (scipy.spatial.distance.cdist(points, support) <= radii).any(axis=1)
