"""Several processes, on one host or many, that run one program together by `jax.distributed`.

The first process (of index 0) owns the run folder; what the others must know of it, it sends them:
arrays and JSON, never code. What exchanges something is called by every process, in the same order.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import reprlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax import errors
from edl_jax.errors import EDLError, ProcessError
from edl_jax.runs.devices import device_mesh, on_every_device
from edl_jax.runs.environment import commit, differences, versions

Value = TypeVar("Value")

_ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, EDLError)
}
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_SECONDS_TO_SPEAK = 2  # how long the first process, when all fail, lets the others say why
_MOST_DIFFERENCES = 6  # that are told
_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def is_first() -> bool:
    """Whether this process owns the run folder."""
    return jax.process_index() == 0


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


def of_all(tree: Any) -> Any:
    """The arrays of all processes: each of the pytree's with an axis of processes in front.

    Raises:
      ProcessError: if a process is gone.
    """
    from jax.experimental import multihost_utils

    with others_needed():
        return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree))


def in_any(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    return flag if jax.process_count() == 1 else bool(of_all(np.array(flag)).any())


def arrays_from_first(tree: Any) -> Any:
    """The first process's pytree of arrays; in every process one of the same form is given."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda x: x[0], of_all(tree))


def json_from(index: int, value: Any) -> Any:
    """The JSON data of the process of an index; `value` is looked at in that process only.

    Raises:
      ProcessError: if what comes is not JSON; or a process is gone.
    """
    data = json.dumps(value).encode() if jax.process_index() == index else b""
    size = int(of_all(np.array(len(data)))[index])
    # Few sizes, as each is a program of its own.
    row = np.zeros(max(4096, 1 << (size - 1).bit_length()), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    try:
        return json.loads(of_all(row)[index, :size].tobytes())
    except (ValueError, RecursionError) as error:
        raise ProcessError(
            f"process {index} of the run sent no JSON: another program takes part. Let only the "
            "processes of the run reach the coordinator's port and one another."
        ) from error


@functools.cache
def connect_devices() -> None:
    """Connect the devices of all processes. Called by every process, at about the same time.

    CPU devices connect in their first exchange, and give up after 30 s: one process may be that
    much slower later, when it reads data or compiles, but not now.

    Raises:
      ProcessError: if the processes have different devices, or one cannot be reached.
    """
    with others_needed():
        owners: dict[str, list[int]] = {}
        for index in range(jax.process_count()):
            kinds = [x.device_kind for x in jax.devices() if x.process_index == index]
            listed = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds)))
            owners.setdefault(listed, []).append(index)
        if len(owners) > 1:
            listed = "; ".join(f"{what} in process {x[0]}" for what, x in owners.items())
            raise ProcessError(
                f"the processes have different devices: {listed}. Give each as many of the same "
                "kind."
            )
        in_any(False)  # connects the first device of each
        mesh = device_mesh("all")
        on_every_device(lambda: jax.lax.psum(jnp.ones(()), "all"), mesh)().block_until_ready()


def agree(identity: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse to work with processes that were given something else to do, or run other code.

    Call it before anything is done; alone, it does nothing.

    Args:
      identity: gives all that must be equal in every process, as JSON data; not called alone.

    Raises:
      ProcessError: in every process, naming what differs; if one cannot be reached; or if they
        have different devices.
    """
    if jax.process_count() == 1:
        return
    connect_devices()
    code = commit()
    if in_any(code is None):  # git cannot be asked there, which does not make the code another
        code = None
    text = json.dumps({**identity(), "versions": versions(), "commit": code}, sort_keys=True)
    digests = of_all(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    others = np.flatnonzero((digests != digests[0]).any(axis=1))
    if not others.size:
        return
    first, other = (json_from(int(index), json.loads(text)) for index in (0, others[0]))
    found = list(differences(first, other))
    told = [
        f"{name} is {_SHORT.repr(mine)} in process 0 and {_SHORT.repr(its)} in process {others[0]}"
        for name, mine, its in found[:_MOST_DIFFERENCES]
    ]
    if len(found) > len(told):
        told.append(f"{len(found) - len(told)} more")
    also = f" Processes {_SHORT.repr(others.tolist())} differ." if others.size > 1 else ""
    raise ProcessError(
        f"the processes were not started alike: {'; '.join(told)}.{also} Start all of them with "
        "the same command, configuration, data and code."
    )


def all_do(function: Callable[[], Value]) -> Value:
    """Let every process do something that may take long or fail; all wait for all.

    On CPU devices JAX waits for half an hour.

    Args:
      function: what to do; it exchanges nothing with the others.

    Raises:
      EDLError: what the function raised in one of the processes is raised in every one.
      ProcessError: likewise, where it was another exception, which that process raises; or if a
        process is gone.
    """
    if jax.process_count() == 1:
        return function()
    value: Any = None
    failure, told = None, None
    try:
        value = function()
    except Exception as error:
        failure, kinds = error, [x.__name__ for x in type(error).__mro__]
        told = [next((x for x in kinds if x in _ERRORS), None), str(error)]
        if told[0] is None:
            what = f"{type(error).__name__}: {error}"
            told = ["ProcessError", f"process {jax.process_index()} failed ({what})."]
    failed = np.flatnonzero(of_all(np.array(failure is not None)))
    if not failed.size:
        return value
    kind, text = json_from(int(failed[0]), told)
    raise failure or _ERRORS.get(kind, ProcessError)(text)


def first_does(function: Callable[[], Value], *, share: bool = True) -> Value:
    """Let the first process do something that may take long or fail; the others wait.

    Args:
      function: what to do; the others do not call it.
      share: whether the others get what it gives, as JSON data, or None.

    Returns:
      What the function gave; where it is shared, tuples have become lists.

    Raises:
      EDLError: what the function raised, in every process.
      ProcessError: as of `all_do`.
    """
    if jax.process_count() == 1:
        return function()
    value: Any = all_do(function if is_first() else lambda: None)
    return json_from(0, value) if share else value


def leave(status: int) -> NoReturn:
    """End this process where others may be gone: an ordinary exit would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX ends the others from C++ when the first is gone, whatever they were about to say.
    if jax.distributed.is_initialized() and is_first():
        time.sleep(_SECONDS_TO_SPEAK)
    os._exit(status)
