"""Images read while training, for data sets that do not fit the device's memory."""

import collections
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from edl_jax.data.optional import require
from edl_jax.data.sources import ImageSource
from edl_jax.errors import InputError

T = TypeVar("T")
Batch = tuple[np.ndarray, np.ndarray]  # images and labels
_CHUNK = 250
_MAX_THREADS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images that are read and decoded when they are indexed.

    Attributes:
      source: where they are.
      split: its split, "train" or "test".
      rows: `[n]`, their positions in the split.
    """

    source: ImageSource
    split: str
    rows: np.ndarray
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(n, height, width, channels)`."""
        return (len(self.rows), *self.source.image_shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The images at `indices`, in that order, as an array in memory gives them.

        Raises:
          IndexError: an index is out of range.
          DataError: the files are damaged.
        """
        rows = self.rows[indices]
        images = self.source.read(self.split, np.reshape(rows, -1))
        return images.reshape(*np.shape(rows), *self.source.image_shape)


Images = np.ndarray | StreamedImages


def fits_device(num_bytes: int) -> bool:
    """Whether images of this size leave the device three quarters of its memory.

    On the CPU, where JAX names no limit, the machine's memory counts.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * num_bytes <= limit


def read_chunks(images: Images, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The images at `rows`, in order and a few hundred at a time, read by several threads."""
    pieces = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    with ThreadPoolExecutor(_num_threads()) as pool:
        try:
            yield from pool.map(images.__getitem__, pieces)
        finally:
            pool.shutdown(cancel_futures=True)


def stream_batches(
    images: Images, labels: np.ndarray, indices: np.ndarray
) -> Generator[Batch, None, None]:
    """Batches of exactly the examples asked for, read ahead by threads of Grain.

    Args:
      images: `[n, height, width, channels]`, uint8; an array or `StreamedImages`.
      labels: `[n]`, whole numbers.
      indices: `[steps, batch]`, whole numbers in `[0, n)`.

    Returns:
      An iterator of `steps` pairs of images, `[batch, height, width, channels]`, uint8, and
      labels, `[batch]`, int32. Its `close` method, which also runs when it is dropped, ends the
      threads. It raises `DataError` where the files turn out to be damaged.

    Raises:
      InputError: `indices` has another shape or type, or is out of range.
      DataError: Grain is not installed.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or not np.issubdtype(indices.dtype, np.integer):
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

    images: Images
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, step: Any) -> Batch:
        chosen = self.indices[step]
        return self.images[chosen], self.labels[chosen].astype(np.int32)


def _stream(grain: Any, batches: _Batches) -> Generator[Batch, None, None]:
    threads = _num_threads()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def prefetch_to_device(
    batches: Iterable[Any], put: Callable[[Any], T], size: int = 2
) -> Generator[T, None, None]:
    """Puts batches on the device before they are needed: `size` beyond the one in use.

    Args:
      batches: what to put there; its `close` method, if it has one, is called at the end.
      put: starts a transfer, such as `jax.device_put`.
      size: how many to keep ahead, at least 0.

    Yields:
      What `put` returns for each batch, in order.
    """
    iterator, ahead = iter(batches), collections.deque[T]()
    try:
        for batch in iterator:
            ahead.append(put(batch))
            if len(ahead) > size:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        getattr(iterator, "close", lambda: None)()


def _num_threads() -> int:
    return min(os.cpu_count() or 1, _MAX_THREADS)
