"""Accuracy on held-out images, in batches that the devices share."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.devices import on_every_device, rows_divided
from edl_jax.training.datasets import Dataset
from edl_jax.training.steps import AXIS, Batch, TrainState
from edl_jax.training.streaming import prefetch_to_device, stream_batches

_EVAL_BATCH = 1000
_WHOLE, _DIVIDED = PartitionSpec(), PartitionSpec(AXIS)


def make_accuracy(
    correct: Callable[[TrainState, jax.Array, jax.Array], jax.Array], dataset: Dataset, mesh: Mesh
) -> Callable[[TrainState, str], np.ndarray]:
    """`(state, split) -> accuracy`, from the function that counts correct images of a share."""
    compiled = on_every_device(correct, mesh, in_specs=(_WHOLE, _DIVIDED, _DIVIDED))

    def accuracy(state: TrainState, split: str) -> np.ndarray:
        read = _read_batches if dataset.streamed else _held_batches
        counts = [compiled(state, images, labels) for images, labels in read(dataset, split, mesh)]
        return np.atleast_1d(np.asarray(sum(counts))) / len(getattr(dataset, f"{split}_labels"))

    return accuracy


def _read_batches(dataset: Dataset, split: str, mesh: Mesh) -> Iterator[Batch]:
    """All images of a split; the last batch is filled up with images whose label is -1."""
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    put, rows, is_surplus = _eval_rows(len(labels), mesh)
    if dataset.streamed:
        batches = stream_batches(images, labels, rows)
    else:
        batches = ((images[index], labels[index]) for index in rows)
    filled = ((x, np.where(no, -1, y)) for (x, y), no in zip(batches, is_surplus, strict=True))
    return prefetch_to_device(filled, put)


@functools.lru_cache(maxsize=4)  # as of the training images, for both splits
def _held_batches(dataset: Dataset, split: str, mesh: Mesh) -> list[Batch]:
    return list(_read_batches(dataset, split, mesh))


def _eval_rows(count: int, mesh: Mesh) -> tuple[Callable[[Any], Any], np.ndarray, np.ndarray]:
    """How to put a batch, this process's rows of each, and which of them are surplus."""
    size = -(-min(_EVAL_BATCH, count) // mesh.size) * mesh.size
    put, mine = rows_divided(mesh, size)
    rows = np.arange(-(-count // size) * size).reshape(-1, size)[:, mine]
    return put, np.minimum(rows, count - 1), rows >= count
