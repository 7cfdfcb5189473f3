"""The main job in one call: evolve a loss, then train with it and with cross-entropy."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edl_jax.checked import Checked, Count, check_seeds
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError
from edl_jax.evolution import PretrainConfig
from edl_jax.runs.folder import writing
from edl_jax.runs.locks import locked
from edl_jax.runs.storage import user_path
from edl_jax.studies.compare import CompareConfig, compare
from edl_jax.studies.figures import check_libraries, plot_evolution, save
from edl_jax.studies.shape import plot_loss
from edl_jax.studies.tables import Study
from edl_jax.training import TrainConfig

if TYPE_CHECKING:
    from edl_jax.evolution.pretraining import PretrainResult


@dataclasses.dataclass(frozen=True)
class DemoConfig(Checked):
    """What the demonstration may be told.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    data_dir: str | None = None
    """TFDS directory that holds CIFAR-10; else where TFDS looks, a download, or digits."""
    num_seeds: Count = 3
    """Trainings of each loss."""
    pretrain: PretrainConfig = PretrainConfig()
    """How the loss is evolved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self, "num_seeds", TrainConfig.seed)
        if self.pretrain.network == "pair" and self.pretrain.class_counts != (10,):
            raise ConfigError(
                f"DemoConfig.pretrain.class_counts is {self.pretrain.class_counts} with network "
                "'pair'; expected (10,), the class count of CIFAR-10 and of digits."
            )


def demo(
    config: DemoConfig,
    run_dir: str | os.PathLike[str],
    *,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> "tuple[PretrainResult, Study]":
    """Evolve a loss, train with cross-entropy and with it, and plot both; sized for two CPU cores.

    Args:
      config: what the demonstration was told.
      run_dir: where everything is written.
      progress: whether to show progress bars.
      say: called with a line about each stage as it begins.

    Raises:
      ConfigError: if `run_dir` is no path.
      DataError: if `data_dir` is given and holds no CIFAR-10 that can be read.
      RunFolderError: if `run_dir` is in use by another run, or something cannot be written.
      Preempted: on SIGTERM; the same call resumes.
      EDLError: if a library that studies need is not installed.
    """
    folder = user_path(run_dir)
    with locked(folder):
        return _demo(config, folder, progress, say)


def _demo(
    config: DemoConfig, folder: Path, progress: bool, say: Callable[[str], None]
) -> "tuple[PretrainResult, Study]":
    """Demonstrate in a folder that is held."""
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    # Looked up first: a missing data set should not cost a minute of evolution.
    few = DataConfig(data_dir=config.data_dir, train_examples=1, test_examples=1)
    data = load_dataset(few)
    check_libraries("pandas", "statsmodels")
    say(f"Data: {data.source}.")
    say(f"Evolving a loss on synthetic pairs for {config.pretrain.generations} generations ...")
    evolved = pretrain(config.pretrain, run_dir=folder / "pretrain", progress=progress)
    with writing("the loss and its figures", folder):
        evolved.loss.save(folder / "evolved.safetensors")
        save(plot_evolution(evolved.history, evolved.held_out), folder / "evolution.png")
        save(plot_loss({"evolved": evolved.loss}), folder / "loss.png")
    say(f"Training with cross-entropy and with the evolved loss, {config.num_seeds} seeds each ...")
    losses = ("cross_entropy", str(folder / "evolved.safetensors"))
    train = _small_training(data.name, config.data_dir)
    study = compare(
        CompareConfig(losses=losses, num_seeds=config.num_seeds, train=train),
        run_dir=folder / "compare",
        progress=progress,
    )
    return evolved, study


def _small_training(dataset: str, data_dir: str | None) -> TrainConfig:
    """About half a minute on two cores with CIFAR-10, a few seconds with digits."""
    if dataset == "digits":
        return TrainConfig(data=DataConfig(name="digits"), epochs=10, batch_size=64)
    data = DataConfig(name=dataset, data_dir=data_dir, train_examples=5000, test_examples=2000)
    return TrainConfig(data=data, epochs=4)
