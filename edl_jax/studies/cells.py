"""What a cell of a sweep runs: an evolution, a training, or a training with the evolved loss."""

import dataclasses
import functools
import pickle
from typing import Any

import numpy as np

from edl_jax.checked import Checked
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError, DivergedError
from edl_jax.evolution import PretrainConfig
from edl_jax.losses.by_name import Loss
from edl_jax.runs.describing import describe
from edl_jax.studies.sweep import Row
from edl_jax.training import TrainConfig, make_trainer
from edl_jax.training.training import resolve_config_loss

FINAL, AREA = "violated_margins", "area"
RANKING = (FINAL, "pairwise_accuracy", "kendall_tau", "spearman_rho")
GRADIENT = ("descent_rate", "gradient_ratio/0.0-0.1", "gradient_ratio/0.9-1.0")
MEASURES = ("accuracy", "nll", "calibration_error")


@dataclasses.dataclass(frozen=True)
class Cell(Checked):
    """An evolution, a training, or both; and which images measure the training, "val" or "test"."""

    pretrain: PretrainConfig | None = None
    train: TrainConfig | None = None
    split: str = "val"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train and self.split == "val" and not self.train.data.val_examples:
            raise ConfigError(
                "train.data.val_examples is 0; expected some images to measure accuracy on, as "
                "nothing is to be chosen by test images."
            )

    def run(self) -> Row:
        """What `evolve_once` gives, and `train_once`, with the evolved loss if there is one."""
        row, loss = ({}, None) if self.pretrain is None else evolve_once(self.pretrain)
        if self.train is not None:
            row |= train_once(self.train, test=self.split == "test", loss=loss)
        return row


def evolve_once(config: PretrainConfig) -> tuple[Row, Loss]:
    """Evolve a loss, and measure it on held-out pairs.

    Gives ranking over all pairs, the gradient of the middle class count, `curve`, the
    `violated_margins` of the best on held-out pairs after each chunk, and `area`, its mean.
    """
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    result = pretrain(config)
    prefix = f"{config.class_counts[len(config.class_counts) // 2]} classes: "
    row: Row = {name: result.metrics.get(name) for name in RANKING}
    row |= {name: result.metrics.get(prefix + name) for name in GRADIENT}
    curve = result.held_out[FINAL]
    row["curve"] = [x if np.isfinite(x) else None for x in curve.tolist()]
    return row | {AREA: float(curve.mean())}, result.loss


def train_once(config: TrainConfig, *, test: bool, loss: Loss | None = None) -> Row:
    """Train, and measure on test images, or on validation images, after the last epoch.

    Gives `MEASURES`; `diverged`, with which a training counts with the accuracy of guessing and no
    other metric; and `epochs`, the accuracy after each epoch. A loss replaces the configuration's.
    """
    rows: list[Row] = []
    kind, data = dataclasses.replace(config, seed=0), load_dataset(config.data)
    if loss is None:
        told = f"{describe(resolve_config_loss(config, data))} on {data.digest}"
        train = kept_trainer(pickle.dumps(kind), told)
    else:
        train = make_trainer(kind, loss=loss)
    try:
        (result,) = train([config.seed], report=rows.append, test=test)
        last = rows[-1]
        found = {x: getattr(result, f"test_{x}") if test else last[x] for x in MEASURES}
        found["diverged"] = False
    except DivergedError:
        found = dict.fromkeys(MEASURES) | {"accuracy": 1 / data.num_classes, "diverged": True}
    # A training that diverged guesses in the epochs that it did not reach.
    epochs = [row["accuracy"] for row in rows] + [found["accuracy"]] * (config.epochs - len(rows))
    return {**found, "epochs": epochs}


@functools.lru_cache(maxsize=2)  # each holds compiled programs, which serve every seed
def kept_trainer(pickled: bytes, told: str) -> Any:
    """A trainer by its configuration, and by what its loss and data are, which may change."""
    del told
    return make_trainer(pickle.loads(pickled))
