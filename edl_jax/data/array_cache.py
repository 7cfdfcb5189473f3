"""Arrays read in parallel, and kept on disk and mapped from there once they are decoded."""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.sources import Array, LazyArray
from edl_jax.runs.storage import TEMPORARY, make_folder, open_atomically

NUM_THREADS = min(os.cpu_count() or 1, 16)
_logger = logging.getLogger(__name__)
_ABANDONED_SECONDS = 3600
_CHUNK = 250


def read_chunks(array: Array, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, in order and a few hundred at a time, read by several threads."""
    pieces = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            yield from pool.map(array.__getitem__, pieces)
        finally:
            pool.shutdown(cancel_futures=True)


def read_rows(array: Array, rows: np.ndarray) -> np.ndarray:
    """The rows in memory; an array of which a tenth is wanted is read whole and cached.

    Processes that write a cache at the same time write the same bytes, and rename them into place.
    """
    if isinstance(array, np.ndarray):
        return array[rows]
    every, whole = np.arange(len(array)), None
    if array.cache is not None and 10 * len(rows) >= len(array):
        whole = _mapped(array.cache, array)
        if whole is None:
            try:
                _write(array.cache, array)
                whole = _mapped(array.cache, array)
            except OSError as error:
                _logger.info("%s is not kept: %s", array.cache, error)
    if whole is None:
        return np.concatenate([*read_chunks(array, rows)])
    return whole if np.array_equal(rows, every) else whole[rows]


def _mapped(path: Path, array: LazyArray) -> np.ndarray | None:
    """The stored array, or None with a line in the log if it is there but cannot be used."""
    try:
        found = np.load(path, mmap_mode="r")
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            raise ValueError(f"it is {found.dtype}{[*found.shape]}")
        return np.asarray(found)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever the bytes there make the parser raise
        _logger.warning("%s is written again: %s", path, error)
        return None


def _write(path: Path, array: LazyArray) -> None:
    make_folder(path.parents[1], 0o700)  # or `keep_compiled` would not trust it, under some umasks
    for left in path.parent.glob(f".*{TEMPORARY}"):
        # Of a process that was killed: one that lives writes every few seconds.
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            left.unlink()
    header: Any = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    with open_atomically(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in read_chunks(array, np.arange(len(array))):
            file.write(chunk.tobytes())
