"""Images read while training, for data sets that do not fit the device's memory."""

import os
from collections.abc import Generator

import jax
import numpy as np

from edl_jax.data.arrays import NUM_THREADS, Array
from edl_jax.data.images import require

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

    Images are `[batch, height, width, channels]`, uint8, and labels `[batch]`, int32. Closing or
    dropping the iterator ends the threads.
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
