"""Train a classifier and report it, epoch by epoch."""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from edl_jax.errors import EDLError
from edl_jax.runs import RunFolder, as_json
from edl_jax.training.config import TrainConfig
from edl_jax.training.datasets import Dataset, load_dataset
from edl_jax.training.losses import Loss, describe_loss, resolve_loss
from edl_jax.training.steps import TrainFunctions, make_train

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` gives.

    Attributes:
      test_accuracy: accuracy on the test images after the last epoch, never the best epoch's.
      history: a row of metrics for each epoch: `epoch`, `train_loss`, `train_accuracy`,
        `accuracy` (on the held-out validation images where there are any, on the test images
        otherwise; `evaluated_on` says which), `learning_rate` and `images_per_second`.
      source: a sentence that says which data was used.
      params: trained parameters, an NNX state.
      statistics: batch-norm statistics, an NNX state.
    """

    test_accuracy: float
    history: list[Row]
    source: str
    params: Any
    statistics: Any


def train(
    config: TrainConfig | None = None,
    *,
    loss: Loss | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train a classifier on real images with a loss.

    Args:
      config: how to train; the defaults unless given.
      loss: the loss itself, such as `pretrain(...).loss`, in place of the one `config.loss` names;
        takes logits `[batch, num_classes]` and labels `[batch]` and gives losses `[batch]`.
      run_dir: where to keep configuration, metrics and the result; nothing is written unless given.
        A training that was stopped there starts anew.
      progress: whether to show a progress bar.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      RunFolderError: if `run_dir` holds a run with another configuration.
      EDLError: if training diverges.
    """
    config = config or TrainConfig()
    loss = resolve_loss(config.loss) if loss is None else loss
    dataset = load_config_dataset(config)
    identity = {"train": as_json(config), "data": dataset.name, "loss": describe_loss(loss)}
    folder = None if run_dir is None else RunFolder(Path(run_dir), identity)
    functions = make_train(config, dataset, loss)
    bar = tqdm(
        total=config.epochs * functions.images_per_epoch,
        desc=f"train {config.model}",
        unit="img",
        unit_scale=True,
        disable=not progress,
    )
    with bar:

        def report(row: Row) -> None:
            bar.set_postfix_str(f"{row['evaluated_on']} accuracy {row['accuracy']:.3f}")
            bar.update(functions.images_per_epoch)

            if folder is not None:
                folder.append_rows([row])

        if folder is not None:
            folder.resume_rows(lambda row: False)
        result = run_training(config, dataset, functions, config.seed, report=report)
    if folder is not None:
        folder.write_json(
            "results.json", {"test_accuracy": result.test_accuracy, "data": result.source}
        )
    return result


def load_config_dataset(config: TrainConfig) -> Dataset:
    """The data set that `config` names."""
    return load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        train_examples=config.train_examples,
        val_examples=config.val_examples,
        test_examples=config.test_examples,
    )


def run_training(
    config: TrainConfig,
    dataset: Dataset,
    functions: TrainFunctions,
    seed: int,
    *,
    report: Callable[[Row], None] = lambda row: None,
) -> TrainResult:
    """One training with functions made before, from a seed of its own.

    Args:
      config: the settings that `functions` were made from.
      dataset: the data likewise.
      functions: from `make_train`.
      seed: seed of this training.
      report: called with the row of metrics of every epoch as it ends.

    Raises:
      EDLError: if the training loss is not finite at the end of an epoch.
    """
    key_init, key_epochs = jax.random.split(jax.random.key(seed))
    state = functions.init(key_init)
    evaluated_on = "val" if config.val_examples else "test"
    images = functions.images_per_epoch
    rows = []
    for epoch in range(config.epochs):
        start = time.perf_counter()
        state = jax.block_until_ready(functions.epoch(state, key_epochs))
        seconds = time.perf_counter() - start
        row = {
            "epoch": epoch + 1,
            "train_loss": float(state.loss_sum) * config.batch_size / images,
            "train_accuracy": int(state.correct) / images,
            "accuracy": functions.accuracy(state, evaluated_on),
            "evaluated_on": evaluated_on,
            "learning_rate": float(functions.learning_rate(int(state.step) - 1)),
            "images_per_second": images / seconds,
        }
        _check_finite(row)
        rows.append(row)
        report(row)
    last = functions.accuracy(state, "test") if config.val_examples else rows[-1]["accuracy"]
    return TrainResult(last, rows, dataset.source, state.params, state.statistics)


def _check_finite(row: Row) -> None:
    if not math.isfinite(row["train_loss"]):
        raise EDLError(
            f"training diverged: the mean loss of epoch {row['epoch']} is {row['train_loss']} at a "
            f"learning rate of {row['learning_rate']:.3g}. Lower learning_rate or lengthen "
            "warmup_epochs."
        )
