"""The demo: evolve a loss, then train with cross-entropy and with it."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from edl_jax.checked import Checked, Count
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.evolution import PretrainConfig
from edl_jax.runs.folder import locked, writing
from edl_jax.studies.compare import CompareConfig, compare
from edl_jax.studies.figures import plot_evolution, save
from edl_jax.studies.shape import plot_loss
from edl_jax.studies.sweep import asked
from edl_jax.studies.tables import Study
from edl_jax.training import TrainConfig


@dataclasses.dataclass(frozen=True)
class DemoConfig(Checked):
    """Settings of the demo."""

    data_dir: str | None = None
    """TFDS directory that contains CIFAR-10; default: TFDS's own directory, otherwise a download,
    otherwise digits."""
    num_seeds: Count = 3
    """Number of training runs per loss."""
    pretrain: PretrainConfig = PretrainConfig()
    """How the loss is evolved."""


def demo(
    config: DemoConfig,
    run_dir: str | os.PathLike[str],
    *,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Any, Study]:
    """Evolve a loss, train with cross-entropy and with it, and plot both; sized for two CPU cores.

    `say` is called with a line about each stage as it begins. On SIGTERM the same call resumes.
    Returns the `PretrainResult` and the comparison.
    """
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    folder: Any
    config, folder = asked(config, DemoConfig, run_dir)
    with locked(folder):
        # Before the evolution: a missing data set should not cost a minute of it.
        few = DataConfig(data_dir=config.data_dir, train_examples=1, test_examples=1)
        data = load_dataset(few)
        losses = ("cross_entropy", str(folder / "evolved.safetensors"))
        train = _small_training(data.name, config.data_dir)
        comparison = CompareConfig(losses=losses, num_seeds=config.num_seeds, train=train)
        say(f"Data: {data.source}.\nEvolving a loss on synthetic pairs ...")
        evolved = pretrain(config.pretrain, run_dir=folder / "pretrain", progress=progress)
        with writing("the loss and its figures", folder):
            evolved.loss.save(losses[1])
            save(plot_evolution(evolved.history, evolved.held_out), folder / "evolution.png")
            save(plot_loss({"evolved": evolved.loss}), folder / "loss.png")
        say(f"Training with cross-entropy and the evolved loss, {config.num_seeds} seeds each ...")
        return evolved, compare(comparison, run_dir=folder / "compare", progress=progress)


def _small_training(dataset: str, data_dir: str | None) -> TrainConfig:
    """About half a minute on two cores with CIFAR-10, a few seconds with digits."""
    if dataset == "digits":
        return TrainConfig(data=DataConfig(name="digits"), epochs=10, batch_size=64)
    data = DataConfig(name=dataset, data_dir=data_dir, train_examples=5000, test_examples=2000)
    return TrainConfig(data=data, epochs=4)
