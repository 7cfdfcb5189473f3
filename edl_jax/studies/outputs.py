"""Outputs of a training, and how far they are from the synthetic pairs."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from edl_jax.data.datasets import load_dataset
from edl_jax.errors import DivergedError
from edl_jax.losses import EvolvedLoss
from edl_jax.objective import MARGINS, SEVERITIES, measure
from edl_jax.pairs import REGIMES, Mixture, Pairs, sample_pairs
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import as_finite
from edl_jax.studies import distances
from edl_jax.training import TrainConfig
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import AXIS
from edl_jax.training.training import resolve_config_loss

MIXTURE = "mixture"
PARTS = ("train", "held_out")
RANKING = ("pairwise_accuracy", "violated_margins", "gradient_ratio")


def record(
    train: TrainConfig, *, epochs: Sequence[int], num_outputs: int
) -> dict[int, dict[str, Pairs]]:
    """Train, and give outputs after some epochs: "train" as the loss sees them, and "held_out".

    The same images at every epoch and for every seed: train images in whole batches, augmented and
    with the statistics of the batch; validation images where there are any, else test images.

    Args:
      train: how to train.
      epochs: after which to record; 0 is before the first step.
      num_outputs: how many of each part; of train images so many that fill whole batches, at least
        one batch; of held-out images all if there are fewer.

    Raises:
      DivergedError: if the training diverges.
    """
    dataset = load_dataset(train.data)
    loss = resolve_config_loss(train, dataset)
    functions = TrainFunctions(train, dataset, loss, device_mesh(AXIS))
    held_out = "val" if train.data.val_examples else "test"
    whole = min(num_outputs, len(dataset.train_labels)) // train.batch_size
    counts = {"train": max(whole, 1) * train.batch_size, held_out: num_outputs}
    labels = {split: getattr(dataset, f"{split}_labels") for split in counts}
    rows = {
        split: np.random.default_rng(0).permutation(len(labels[split]))[:count]
        for split, count in counts.items()
    }
    key_init, key = jax.random.split(jax.random.key(train.seed))
    state, found = functions.init(key_init), {}
    for epoch in range(epochs[-1] + 1):
        if epoch:
            state = functions.advance(state, key, functions.steps_per_epoch)
            if np.any(jax.device_get(state.failed_step) >= 0):
                raise DivergedError(f"training diverged in epoch {epoch}; lower the learning rate.")
        if epoch in epochs:
            logits = {x: functions.outputs(state, key, x, rows[x]) for x in counts}
            found[epoch] = {
                part: _pairs(logits[x], labels[x][rows[x]])
                for part, x in zip(PARTS, counts, strict=True)
            }
    return found


def compare_outputs(
    pairs: Pairs, references: Mapping[str, Pairs], evolved: EvolvedLoss
) -> list[dict[str, Any]]:
    """Distances of pairs from synthetic ones, and what an evolved loss does on them.

    Args:
      pairs: predictions and labels of a training.
      references: from `draw_references`.
      evolved: the loss.

    Returns:
      A row for the mixture and each regime, by `reference`: `mmd` (squared, unbiased) and
      `coverage`, the share of the pairs inside the reference's support; see `distances`. The
      mixture's row has also `correct`, the share of pairs whose true class is the most probable
      one, the evolved loss's ranking metrics and the quartiles of each summary.
    """
    # One width for all, so that the discrepancies can be compared.
    width = distances.median_distance(distances.coordinates(references[MIXTURE]))
    mine, points = distances.summarise_pairs(pairs), distances.coordinates(pairs)
    rows = []
    for name, reference in references.items():
        support = distances.coordinates(reference)
        covered = float(distances.is_covered(points, support).mean())
        row = {"reference": name, "coverage": covered, "mmd": distances.mmd(points, support, width)}
        if name == MIXTURE:
            row["correct"] = float((mine["rank"] == 1).mean())
            row |= as_finite(rank_outputs(pairs, evolved)) | {"quartiles": quartiles(mine)}
        rows.append(row)
    return rows


def quartiles(summaries: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Lower quartile, median and upper quartile of each summary."""
    return {name: np.percentile(x, [25, 50, 75]).tolist() for name, x in summaries.items()}


@functools.lru_cache(maxsize=2)
def draw_references(
    num_pairs: int, num_classes: int, mixture: Mixture
) -> tuple[dict[str, Pairs], Pairs]:
    """Synthetic pairs to compare with, always the same.

    Returns:
      So many pairs of the mixture, as "mixture", and of each regime, by its name; and fresh ones of
      the mixture, a control.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    draw = functools.partial(sample_pairs, num_classes=num_classes)
    mixed, fresh = (jax.device_get(draw(key, num_pairs, mixture=mixture)) for key in keys[:2])
    # Equal weights: exactly as many of each regime.
    pool = jax.device_get(draw(keys[2], num_pairs * len(REGIMES)))
    regimes: dict[str, Any] = {
        name: jax.tree.map(lambda x, index=index: x[pool.regimes == index], pool)
        for index, name in enumerate(REGIMES)
    }
    return {MIXTURE: mixed, **regimes}, fresh


def rank_outputs(pairs: Pairs, loss: EvolvedLoss) -> dict[str, float]:
    """Ranking and gradient metrics of a loss on pairs, by what it was evolved for.

    Ranking is that of the network, as when a loss is evolved: its scale is that of the margins.
    """
    severity = SEVERITIES[loss.provenance.config.get("severity", "surprisal")]
    margin = MARGINS[loss.provenance.config.get("margin", "proportional")]
    network = loss.replace(scale=np.float32(1))
    found = measure(network, pairs, severity=severity, margin=margin, scale=loss.scale)
    return {name: found[name] for name in RANKING}


def _pairs(logits: np.ndarray, labels: np.ndarray) -> Pairs:
    """Predictions and labels, of no regime, which is -1."""
    probabilities = np.asarray(jax.nn.softmax(logits.astype(np.float32)))
    return Pairs(probabilities, labels, np.full_like(labels, -1))  # pyright: ignore
