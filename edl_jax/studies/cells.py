"""What a cell of a sweep runs: an evolution, a training, or a training with the evolved loss."""

import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from edl_jax.checked import Checked
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError, DivergedError
from edl_jax.evolution import PretrainConfig
from edl_jax.losses.by_name import Loss
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import Row
from edl_jax.training import TrainConfig, make_trainer
from edl_jax.training.metrics import MEASURES
from edl_jax.training.training import resolve_config_loss

FINAL, AREA = "violated_margins", "area"
RANKING = (FINAL, "pairwise_accuracy", "kendall_tau", "spearman_rho")
GRADIENT = ("descent_rate", "gradient_ratio/0.0-0.1", "gradient_ratio/0.9-1.0")


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
    """Evolve a loss, and measure it on held-out pairs: the gradient at the middle class count.

    `curve` is the `violated_margins` of the best after each chunk, `area` its mean.
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
    """Train, and measure after the last epoch; `epochs` is the accuracy after each.

    A training that diverged counts with the accuracy of guessing, and no other metric.
    """
    rows: list[Row] = []
    metrics = dict.fromkeys(MEASURES) | {"accuracy": 1 / load_dataset(config.data).num_classes}
    train = for_all_seeds(make_trainer, config) if loss is None else make_trainer(config, loss=loss)
    try:
        (result,) = train([config.seed], report=rows.append, test=test)
        metrics = {x: getattr(result, f"test_{x}") if test else rows[-1][x] for x in MEASURES}
        metrics["diverged"] = False
    except DivergedError:
        metrics["diverged"] = True
    # A training that diverged guesses in the epochs that it did not reach.
    epochs = [row["accuracy"] for row in rows] + [metrics["accuracy"]] * (config.epochs - len(rows))
    return {**metrics, "epochs": epochs}


def for_all_seeds(make: Callable[[TrainConfig], Any], config: TrainConfig) -> Any:
    """`make(config)`, which serves every seed, known by what its loss and data are, too."""
    data = load_dataset(config.data)
    identity = f"{describe(resolve_config_loss(config, data))} on {data.digest}"
    return kept(make, pickle.dumps(dataclasses.replace(config, seed=0)), identity)


@functools.lru_cache(maxsize=2)  # each holds compiled programs
def kept(make: Callable[[TrainConfig], Any], pickled: bytes, identity: str) -> Any:
    """What is made of a configuration, as long as `told` says the same of its loss and data."""
    return make(pickle.loads(pickled))
