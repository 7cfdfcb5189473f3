"""What several processes send one another: bytes of a known size, JSON and arrays, never code.

Every function is called by every process, in the same order, and gives the same in every process.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from edl_jax.errors import ProcessError

_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_LARGEST_JSON = 2**28  # bytes


@contextlib.contextmanager
def others_needed() -> Iterator[None]:
    """Tell of a process that is gone, where one of several fails to exchange data.

    Raises:
      ProcessError: instead of JAX's error.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # JAX raises some failures of its collectives as a ValueError that begins like a status.
        if jax.process_count() == 1 or not _STATUS.match(str(error)):
            raise
        raise ProcessError(
            f"a process of the run is gone, or cannot be reached ({str(error).splitlines()[0]}). "
            "What was saved until then is in the run folder, if there is one: start all processes "
            "again with the same command to resume."
        ) from error


def rows_of_all(row: np.ndarray) -> np.ndarray:
    """The rows of all processes, `[processes, size]`, uint8; `row` is this one's, `[size]`, uint8.

    Raises:
      ProcessError: if a process is gone.
    """
    from jax.experimental import multihost_utils

    with others_needed():
        return np.asarray(multihost_utils.process_allgather(row))


def as_row(data: bytes) -> np.ndarray:
    """Bytes as `[size]`, uint8."""
    return np.frombuffer(data, np.uint8)


def in_any(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    return flag if jax.process_count() == 1 else bool(rows_of_all(np.array([flag], np.uint8)).any())


def json_from(index: int, value: Any) -> Any:
    """The JSON data of the process of an index, in every process.

    Args:
      index: of the process that sends.
      value: what it sends; looked at in that process only.

    Raises:
      ProcessError: if what comes is not JSON, or not what was sent; or a process is gone.
    """
    sent = json.dumps(value).encode() if jax.process_index() == index else b""
    received = _bytes_from(index, sent)
    try:
        return json.loads(received)
    except (ValueError, RecursionError) as error:
        raise not_as_sent("no JSON") from error


def arrays_from_first(tree: Any, like: Any) -> Any:
    """The first process's pytree of arrays, in every process.

    Args:
      tree: the pytree; looked at in the first process only.
      like: one of the same structure, shapes and dtypes, in every process.

    Returns:
      NumPy arrays.

    Raises:
      ProcessError: if other arrays come than expected, or not what was sent; or a process is gone.
    """
    expected = [np.asarray(x) for x in jax.tree.leaves(like)]
    sent = jax.tree.leaves(tree) if jax.process_index() == 0 else []
    size = sum(x.nbytes for x in expected)
    data = _bytes_from(0, b"".join(np.asarray(x).tobytes() for x in sent), size)
    ends = np.cumsum([x.nbytes for x in expected])
    leaves = [
        np.frombuffer(data[end - x.nbytes : end], x.dtype).reshape(x.shape)
        for x, end in zip(expected, ends, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _bytes_from(index: int, data: bytes, size: int | None = None) -> bytes:
    """The bytes of the process of an index, in every process.

    Args:
      index: of the process that sends.
      data: what it sends.
      size: how many bytes must come; any number of JSON data where None.
    """
    mine = hashlib.sha256(data).digest() + len(data).to_bytes(8)
    header = rows_of_all(as_row(mine))[index].tobytes()
    digest, length = header[:-8], int.from_bytes(header[-8:])
    if length > _LARGEST_JSON if size is None else length != size:
        raise not_as_sent(f"{length} bytes")
    # Few sizes of JSON data, as each is a program of its own.
    padded = max(4096, 1 << (length - 1).bit_length()) if size is None else length
    received = _summed(as_row(data.ljust(padded, b"\0")), jax.process_index() == index)[:length]
    if hashlib.sha256(received).digest() != digest:
        raise not_as_sent("bytes that it did not send")
    return received


def _summed(row: np.ndarray, is_source: bool) -> bytes:
    """The row of the process that sends; of the others only the size counts."""
    from jax.experimental import multihost_utils

    with others_needed():
        shared = multihost_utils.broadcast_one_to_all(row, is_source=is_source)
        return np.asarray(shared).tobytes()


def not_as_sent(what: str) -> ProcessError:
    """The error of data that no process of ours sends."""
    return ProcessError(
        f"a process of the run sent {what}, which none of ours does: another program takes part. "
        "Let only the processes of the run reach the coordinator's port and one another."
    )
