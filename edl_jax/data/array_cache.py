"""Decoded arrays kept on disk and mapped from there."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.runs.storage import TEMPORARY, make_folder, open_atomically

_logger = logging.getLogger(__name__)
_ABANDONED_SECONDS = 3600


def cached_array(
    path: Path | None,
    *,
    dtype: Any,
    shape: tuple[int, ...],
    chunks: Callable[[], Iterable[np.ndarray]],
) -> np.ndarray:
    """A read-only array, mapped from an .npy file that is written if there is none.

    The file's name must say all that determines its content. Processes that write at the same time
    write the same bytes, and rename them into place.

    Args:
      path: in a folder of the user's cache folder, which is made private. None, or what cannot be
        written (with a line in the log), does without.
      dtype: of the array; a file of another dtype or shape is written again.
      shape: of the array.
      chunks: computes the array in pieces, cut along the first axis, in order.
    """
    dtype = np.dtype(dtype)
    array = None if path is None else _mapped(path, dtype, shape)
    if array is None and path is not None:
        try:
            _write(path, dtype, shape, chunks())
            array = _mapped(path, dtype, shape)
        except OSError as error:
            _logger.info("%s is not kept: %s", path, error)
    if array is None:
        array = np.concatenate([np.empty((0, *shape[1:]), dtype), *chunks()])
        array.flags.writeable = False
    return array


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """The stored array, or None with a line in the log if it is there but cannot be used."""
    try:
        array = np.load(path, mmap_mode="r")
        if (array.dtype, array.shape) != (dtype, shape):
            raise ValueError(f"it is {array.dtype}{[*array.shape]}")
        return np.asarray(array)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever the bytes there make the parser raise
        _logger.warning("%s is written again: %s", path, error)
        return None


def _write(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], chunks: Iterable[np.ndarray]
) -> None:
    make_folder(path.parents[1], 0o700)  # or `keep_compiled` would not trust it, under some umasks
    for left in path.parent.glob(f".*{TEMPORARY}"):
        # Of a process that was killed: one that lives writes every few seconds.
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            left.unlink()
    header: Any = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with open_atomically(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk.astype(dtype, copy=False).tobytes())
