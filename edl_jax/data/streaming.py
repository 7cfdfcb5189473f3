"""Images read while training, for data sets that do not fit the device's memory."""

import collections
import os
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import jax
import numpy as np

from edl_jax.data.array_cache import NUM_THREADS
from edl_jax.data.images import require
from edl_jax.data.sources import Array

T = TypeVar("T")
Batch = tuple[np.ndarray, np.ndarray]  # images and labels


def fits_device(num_bytes: int) -> bool:
    """Whether images of this size leave the device three quarters of its memory.

    On the CPU, where JAX names no limit, the machine's memory counts.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * num_bytes <= limit


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

    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=NUM_THREADS)
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
