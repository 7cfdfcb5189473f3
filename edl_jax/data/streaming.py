"""Images read while training, for data sets that do not fit the device's memory."""

import collections
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from edl_jax.data.array_cache import cached_array
from edl_jax.data.optional import require
from edl_jax.data.sources import LazyArray
from edl_jax.errors import InputError

T = TypeVar("T")
Array = np.ndarray | LazyArray
Batch = tuple[np.ndarray, np.ndarray]  # images and labels
_CHUNK = 250
_NUM_THREADS = min(os.cpu_count() or 1, 16)


def fits_device(num_bytes: int) -> bool:
    """Whether images of this size leave the device three quarters of its memory.

    On the CPU, where JAX names no limit, the machine's memory counts.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * num_bytes <= limit


def read_chunks(array: Array, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, in order and a few hundred at a time, read by several threads."""
    pieces = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        try:
            yield from pool.map(array.__getitem__, pieces)
        finally:
            pool.shutdown(cancel_futures=True)


def read_rows(array: Array, rows: np.ndarray) -> np.ndarray:
    """The rows in memory; an array of which a tenth is wanted is read whole and cached."""
    if isinstance(array, np.ndarray):
        return array[rows]
    if 10 * len(rows) < len(array):
        return np.concatenate(list(read_chunks(array, rows)))
    every = np.arange(len(array))
    whole = cached_array(
        array.cache, dtype=array.dtype, shape=array.shape, chunks=lambda: read_chunks(array, every)
    )
    return whole if np.array_equal(rows, every) else whole[rows]


def stream_batches(
    images: Array, labels: np.ndarray, indices: np.ndarray
) -> Generator[Batch, None, None]:
    """Batches of exactly the examples asked for, read ahead by threads of Grain.

    Closing or dropping the iterator ends the threads.

    Args:
      images: `[n, height, width, channels]`, uint8.
      labels: `[n]`, whole numbers.
      indices: `[steps, batch]`, whole numbers in `[0, n)`.

    Returns:
      An iterator of `steps` pairs of images, `[batch, height, width, channels]`, uint8, and
      labels, `[batch]`, int32.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.dtype.kind not in "iu":
        raise InputError(
            f"indices are {indices.dtype} of shape {indices.shape}; expected whole numbers of "
            "shape [steps, batch]."
        )
    if indices.size and not 0 <= indices.min() <= indices.max() < len(images):
        raise InputError(
            f"indices lie in {indices.min()}..{indices.max()}; expected 0..{len(images) - 1}."
        )
    return _stream(require("grain"), _Batches(images, labels, indices))


@dataclasses.dataclass(frozen=True)
class _Batches:
    """A Grain source whose records are whole batches, one thread's work each."""

    images: Array
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, step: Any) -> Batch:
        chosen = self.indices[step]
        return self.images[chosen], self.labels[chosen].astype(np.int32)


def _stream(grain: Any, batches: _Batches) -> Generator[Batch, None, None]:
    options = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_THREADS)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def prefetch_to_device(
    batches: Iterable[Any], put: Callable[[Any], T], size: int = 2
) -> Generator[T, None, None]:
    """What `put` gives for each batch, called for `size` batches beyond the one in use.

    The batches' `close` method, if they have one, is called at the end.
    """
    iterator, ahead = iter(batches), collections.deque[T]()
    try:
        for batch in iterator:
            ahead.append(put(batch))
            if len(ahead) > size:
                yield ahead.popleft()
        yield from ahead
    finally:
        getattr(iterator, "close", lambda: None)()
