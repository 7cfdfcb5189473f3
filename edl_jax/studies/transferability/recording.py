"""Outputs of a training at some of its epochs, and the file that keeps them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import log_softmax

from edl_jax.data.dataset import Dataset
from edl_jax.errors import RunFolderError
from edl_jax.pairs import Pairs
from edl_jax.runs.folder import RunFolder, read_bytes, writing
from edl_jax.runs.storage import open_atomically
from edl_jax.training import TrainConfig
from edl_jax.training.loop import run_training
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.result import Row
from edl_jax.training.steps import TrainState

PARTS = ("train", "held_out")


class Recording(NamedTuple):
    """Outputs of one training on the same images at several epochs.

    Attributes:
      epochs: `[num_epochs]` int32.
      train: log-probabilities `[num_epochs, num_outputs, num_classes]` float32 as the loss sees
        them: of augmented train images, with the statistics of the batch.
      train_labels: the labels that the loss sees, `[num_outputs]` int32.
      held_out: log-probabilities of held-out images, as in an evaluation.
      held_out_labels: their labels.
    """

    epochs: np.ndarray
    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray

    def pairs(self, part: str, number: int) -> Pairs:
        """Predictions and labels of a part, "train" or "held_out", at the epoch of an index.

        They are of no regime, which is -1.
        """
        labels = getattr(self, f"{part}_labels")
        probabilities = np.exp(getattr(self, part)[number])
        return Pairs(probabilities, labels, np.full_like(labels, -1))


def record(
    config: TrainConfig,
    functions: TrainFunctions,
    dataset: Dataset,
    seed: int,
    *,
    epochs: Sequence[int],
    num_outputs: int,
    report: Callable[[Row], None] = lambda row: None,
) -> Recording:
    """Train from a seed and record outputs after some epochs.

    Args:
      config: the settings that `functions` were made from.
      functions: from `make_train`, for one seed.
      dataset: the images. The held-out ones are those of validation, or else of the test.
      seed: seed of the training. The images chosen do not depend on it.
      epochs: after which to record; 0 is before the first step.
      num_outputs: how many of each part; of train images so many that fill whole batches, at least
        one batch; of held-out images all if there are fewer.
      report: called with the row of metrics of every epoch as it ends.

    Raises:
      EDLError: if the training diverges.
    """
    held_out = "val" if config.val_examples else "test"
    labels = {"train": dataset.train_labels, held_out: getattr(dataset, f"{held_out}_labels")}
    whole = min(num_outputs, len(dataset.train_labels)) // config.batch_size * config.batch_size
    counts = {"train": max(whole, config.batch_size), held_out: num_outputs}
    rows = {
        split: np.random.default_rng(0).permutation(len(labels[split]))[:count]
        for split, count in counts.items()
    }
    found: dict[str, list[np.ndarray]] = {split: [] for split in rows}

    def watch(epoch: int, state: TrainState, key: jax.Array) -> None:
        if epoch in epochs:
            for split in rows:
                logits = functions.outputs(state, key, split, rows[split])
                found[split].append(log_softmax(logits.astype(np.float64), axis=-1))

    run_training(config, functions, [seed], report=report, watch=watch, test=False)
    stacked = {split: np.stack(arrays).astype(np.float32) for split, arrays in found.items()}
    return Recording(
        np.asarray(epochs, np.int32),
        stacked["train"],
        labels["train"][rows["train"]],
        stacked[held_out],
        labels[held_out][rows[held_out]],
    )


def save_recording(folder: RunFolder, name: str, recording: Recording) -> None:
    """Write a recording to a run folder as a compressed npz file, whole or not at all.

    Raises:
      RunFolderError: if it cannot be written.
    """
    with writing(name, folder.path), open_atomically(folder.path / name) as file:
        np.savez_compressed(file, **recording._asdict())


def load_recording(path: Path, epochs: Sequence[int]) -> Recording:
    """Read a recording.

    Args:
      path: its file.
      epochs: which it has to be of.

    Raises:
      RunFolderError: if the file is damaged, or cannot be read.
    """
    content = read_bytes(path)
    try:
        with np.load(io.BytesIO(content)) as arrays:
            recording = Recording(**{name: arrays[name] for name in Recording._fields})
        if recording.epochs.tolist() != list(epochs):
            raise ValueError(f"it is of epochs {recording.epochs.tolist()}")
    except Exception as error:  # a flipped bit in an archive raises nearly anything
        raise RunFolderError(
            f"{path} is damaged ({error}). Remove it: the same command then trains again."
        ) from error
    return recording
