"""Metrics on held-out images, in batches that the devices share."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.data.arrays import stream_batches
from edl_jax.data.dataset import Dataset
from edl_jax.runs.devices import on_every_device, rows_divided
from edl_jax.training.metrics import Metrics, Sums, metrics_of
from edl_jax.training.steps import AXIS, Batch, TrainState

_EVAL_BATCH = 1000
_WHOLE, _DIVIDED = PartitionSpec(), PartitionSpec(AXIS)


def make_evaluate(
    sums: Callable[[TrainState, jax.Array, jax.Array], Sums], dataset: Dataset, mesh: Mesh
) -> Callable[[TrainState, str], Metrics]:
    """`(state, split) -> metrics`, from the function that sums up a share of a batch."""
    compiled = on_every_device(sums, mesh, in_specs=(_WHOLE, _DIVIDED, _DIVIDED))

    def evaluate(state: TrainState, split: str) -> Metrics:
        read = _read_batches if dataset.streamed else _held_batches
        found = [compiled(state, images, labels) for images, labels in read(dataset, split, mesh)]
        total = jax.tree.map(lambda *x: np.sum(np.stack(x, dtype=float), axis=0), *found)
        return metrics_of(total, len(getattr(dataset, f"{split}_labels")))

    return evaluate


def _read_batches(dataset: Dataset, split: str, mesh: Mesh) -> Iterator[Batch]:
    """All images of a split; the last batch is filled up with images whose label is -1."""
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    put, rows, is_surplus = _eval_rows(len(labels), mesh)
    if dataset.streamed:
        batches = stream_batches(images, labels, rows)
    else:
        batches = ((images[index], labels[index]) for index in rows)
    filled = ((x, np.where(no, -1, y)) for (x, y), no in zip(batches, is_surplus, strict=True))
    return map(put, filled)


@functools.lru_cache(maxsize=4)  # as of the training images, for both splits
def _held_batches(dataset: Dataset, split: str, mesh: Mesh) -> list[Batch]:
    return list(_read_batches(dataset, split, mesh))


def _eval_rows(count: int, mesh: Mesh) -> tuple[Callable[[Any], Any], np.ndarray, np.ndarray]:
    """How to put a batch, this process's rows of each, and which of them are surplus."""
    size = -(-min(_EVAL_BATCH, count) // mesh.size) * mesh.size
    put, mine = rows_divided(mesh, size)
    rows = np.arange(-(-count // size) * size).reshape(-1, size)[:, mine]
    return put, np.minimum(rows, count - 1), rows >= count
