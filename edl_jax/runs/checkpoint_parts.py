"""The parts of a checkpoint: its files, its arrays, and the record of what they are."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np


def by_number(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree, on the host, by their place in it."""
    return {f"{index:04}": np.asarray(x) for index, x in enumerate(jax.tree.leaves(tree))}


def described(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Their dtypes and shapes."""
    return {key: f"{x.dtype}{list(x.shape)}" for key, x in arrays.items()}


def digest(step: int, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of a step and its arrays."""
    found = hashlib.sha256(str(step).encode())
    for key, x in sorted(arrays.items()):
        found.update(key.encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def digest_of_record(record: dict[str, Any]) -> str:
    """SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files of a checkpoint; Orbax would wait for ever for the other end of a pipe.

    Raises:
      ValueError: if something else than files and folders is there.
      OSError: if it cannot be read.
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    files = [Path(x) / name for x, _, names in os.walk(folder, onerror=fail) for name in names]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file.name} is no file")
    return files


def read(file: Path) -> None:
    """Read a file to its end.

    Raises:
      OSError: if it cannot be read.
    """
    with file.open("rb") as stream:
        while stream.read(1 << 24):
            pass
