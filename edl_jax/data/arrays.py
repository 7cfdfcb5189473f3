"""Arrays whose rows are read when they are indexed: in parallel, cached, ahead of a training."""

import dataclasses
import hashlib
import importlib
import logging
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.errors import DataError
from edl_jax.runs.storage import make_folder, open_atomically, remove_temporary

_THREADS = min(os.cpu_count() or 1, 16)
_logger = logging.getLogger(__name__)
_CHUNK = 250


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array whose rows are read when they are indexed.

    `rows` are their places in all that `read` can read, from `[k]` to `[k, *row_shape]`; `digest`
    tells all that from others, and `cache` is the file where the whole array may be kept.
    """

    rows: np.ndarray
    row_shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]
    digest: str
    cache: Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, *row_shape)`."""
        return (len(self.rows), *self.row_shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The rows at `indices`, as an array in memory gives them."""
        places = self.rows[indices]
        return self.read(np.reshape(places, -1)).reshape((*np.shape(places), *self.row_shape))


Array = np.ndarray | LazyArray


def content_digest(about: Any, *arrays: Array) -> str:
    """16 hexadecimal digits for arrays, and for plain data about them."""
    digest = hashlib.sha256(repr(about).encode())
    for array in arrays:
        if isinstance(array, LazyArray):
            digest.update(array.digest.encode())
            array = array.rows
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        for start in range(0, len(array), _CHUNK):  # what is mapped need not fit memory
            digest.update(np.ascontiguousarray(array[start : start + _CHUNK]).data)
    return digest.hexdigest()[:16]


def read_chunks(array: Array, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, in order and a few hundred at a time, read by several threads."""
    pieces = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from pool.map(array.__getitem__, pieces)
        finally:
            pool.shutdown(cancel_futures=True)


def read_rows(array: Array, rows: np.ndarray) -> np.ndarray:
    """The rows in memory; an array of which half is wanted is read whole and cached."""
    if isinstance(array, np.ndarray):
        return array[rows]
    whole = _mapped(array)
    if whole is None:
        if array.cache is None or 2 * len(rows) < len(array):
            return np.concatenate([*read_chunks(array, rows)])
        whole = np.concatenate([*read_chunks(array, np.arange(len(array)))])
        whole.flags.writeable = False
        try:
            # Private, or `keep_compiled` would not trust the folder, under some umasks.
            make_folder(array.cache.parents[1], 0o700)
            remove_temporary(array.cache.parent)  # another process that writes does without
            with open_atomically(array.cache) as file:
                np.save(file, whole)
        except OSError as error:
            _logger.info("%s is not kept: %s", array.cache, error)
    return whole if np.array_equal(rows, np.arange(len(array))) else whole[rows]


def _mapped(array: LazyArray) -> np.ndarray | None:
    """The cached array, or None with a line in the log if it is there but cannot be used."""
    if array.cache is None:
        return None
    try:
        found = np.load(array.cache, mmap_mode="r")
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            raise ValueError(f"it is {found.dtype}{[*found.shape]}")
        return np.asarray(found)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever the bytes there make the parser raise
        _logger.warning("%s is written again: %s", array.cache, error)
        return None


def stream_batches(
    images: Array, labels: np.ndarray, indices: np.ndarray
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Batches of the examples at `indices`, `[steps, batch]`, read ahead by threads of Grain.

    Images are `[batch, height, width, channels]`, uint8, and labels `[batch]`, int32. Closing or
    dropping the iterator ends the threads.
    """
    grain = require("grain")

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        return images[indices[step]], labels[indices[step]].astype(np.int32)

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
    iterator = iter(grain.MapDataset.range(len(indices)).map(read).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def require(module: str) -> Any:
    """Import a module of the `data` extra when it is first needed, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f'{error}: pip install "edl_jax[data]"') from error


class UnavailableError(DataError):
    """A data set cannot be had here; with "auto", another takes its place."""
