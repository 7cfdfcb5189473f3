"""Rows of images and labels read in parallel, in full or while training."""

import collections
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from edl_jax.data.array_cache import cached_array
from edl_jax.data.images import require
from edl_jax.data.sources import LazyArray

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
        return np.concatenate([*read_chunks(array, rows)])
    every = np.arange(len(array))
    whole = cached_array(
        array.cache, dtype=array.dtype, shape=array.shape, chunks=lambda: read_chunks(array, every)
    )
    return whole if np.array_equal(rows, every) else whole[rows]


def stream_batches(
    images: Array, labels: np.ndarray, indices: np.ndarray
) -> Generator[Batch, None, None]:
    """Batches of the examples at `indices`, `[steps, batch]`, read ahead by threads of Grain.

    Yields images, `[batch, height, width, channels]`, uint8, and labels, `[batch]`, int32.
    Closing or dropping the iterator ends the threads.
    """
    grain = require("grain")

    def read(step: int) -> Batch:
        return images[indices[step]], labels[indices[step]].astype(np.int32)

    options = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_THREADS)
    iterator = iter(grain.MapDataset.range(len(indices)).map(read).to_iter_dataset(options))
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
