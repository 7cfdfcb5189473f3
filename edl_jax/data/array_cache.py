"""Decoded arrays kept on disk, checked whenever they are read, rebuilt when anything is amiss."""

import contextlib
import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.runs.storage import make_folder, open_atomically, write_atomically

_logger = logging.getLogger(__name__)
_ABANDONED_SECONDS = 3600


def cached_array(
    folder: Path | None,
    item: str,
    origin: dict[str, Any],
    *,
    dtype: Any,
    shape: tuple[int, ...],
    chunks: Callable[[], Iterable[np.ndarray]],
) -> np.ndarray:
    """An array from the folder, if it is there whole, or else computed and stored there.

    `ITEM.npy` is the array, and `ITEM.json` its checksum and origin. Each is written beside
    its place and renamed, the description last, so that a reader who comes between the two finds
    that they do not fit and builds the array itself. Processes that build at the same time
    write the same bytes.

    Args:
      folder: where to look and then to write, in the user's cache folder, which is made private;
        None, or what cannot be written (with a line in the log), does without.
      item: name of the two files.
      origin: all that determines the content, as JSON has it (lists, no tuples); an array of
        another origin is stale and is replaced.
      dtype: of the array.
      shape: of the array.
      chunks: computes the array in pieces, cut along the first axis, in order.

    Returns:
      `shape`, `dtype`, read-only; mapped from the file where there is one.
    """
    dtype = np.dtype(dtype)
    origin = origin | {"dtype": dtype.str, "shape": list(shape)}
    if folder is not None:
        array = _read(folder, item, origin, dtype, shape)
        if array is not None:
            return array
        try:
            _write(folder, item, origin, dtype, shape, chunks())
        except OSError as error:
            _logger.info("no cache of %s in %s: %s", item, folder, error)
        else:
            array = _read(folder, item, origin, dtype, shape)
            if array is not None:
                return array
    array = np.concatenate([np.empty((0, *shape[1:]), dtype), *chunks()])
    array.flags.writeable = False
    return array


def _read(
    folder: Path, item: str, origin: dict[str, Any], dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The stored array, or None with a line in the log if it is there but cannot be used."""
    path = folder / f"{item}.json"
    try:
        if not path.exists():
            return None
        described = json.loads(path.read_bytes())
        if described["origin"] != origin:
            raise ValueError("it is stale")
        content = np.memmap(path.with_suffix(".npy"), np.uint8, mode="r")
        if zlib.crc32(content.data) != described["crc32"]:
            raise ValueError("it is damaged")
        # A view of what was just checked: the name may by now belong to another file.
        array = np.asarray(content)[len(content) - dtype.itemsize * math.prod(shape) :]
        return array.view(dtype).reshape(shape)
    except Exception as error:  # whatever the bytes there make the parsers raise
        _logger.warning("the cache %s is built again: %s", path, error)
        return None


def _write(
    folder: Path,
    item: str,
    origin: dict[str, Any],
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunks: Iterable[np.ndarray],
) -> None:
    make_folder(folder.parent, 0o700)  # or `keep_compiled` would not trust it, under some umasks
    for left in folder.glob(f".{item}.npy.*"):
        # Of a process that was killed: one that lives writes every few seconds.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with open_atomically(folder / f"{item}.npy") as file:
        writer = _ChecksumWriter(file)
        np.lib.format.write_array_header_1_0(writer, header)  # type: ignore[arg-type]
        for chunk in chunks:
            writer.write(chunk.astype(dtype, copy=False).tobytes())
    described = {"origin": origin, "crc32": writer.crc32}
    write_atomically(folder / f"{item}.json", json.dumps(described, indent=1).encode())


class _ChecksumWriter:
    """Writes to a file and keeps the checksum of what was written."""

    def __init__(self, file: Any) -> None:
        self._file, self.crc32 = file, 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
