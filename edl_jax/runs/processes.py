"""Several processes, on one host or many, that run one program together by `jax.distributed`.

The first process (of index 0) owns the run folder; what the others must know of it, it sends them:
arrays and JSON, never code. What exchanges something is called by every process, in the same order,
and raises a `ProcessError` in those that are left where one is gone.
"""

import contextlib
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import EDLError, ProcessError
from edl_jax.runs.devices import device_mesh, on_every_device
from edl_jax.runs.environment import commit, difference, versions

Value = TypeVar("Value")

_ERRORS = {kind.__name__: kind for kind in (EDLError, *EDLError.__subclasses__())}
# How JAX's errors begin that its collectives raise; some of them are a ValueError.
_STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_SECONDS_TO_REPORT = 2  # how long the first process, when all fail, lets the others say why


def is_first() -> bool:
    """Whether this process owns the run folder."""
    return jax.process_index() == 0


@contextlib.contextmanager
def others_needed() -> Iterator[None]:
    """Raise a `ProcessError` where an exchange fails because another process is gone."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _STATUS.match(str(error)):
            raise
        raise ProcessError(
            f"a process of the run is gone, or cannot be reached ({str(error).splitlines()[0]}). "
            "What was saved until then is in the run folder, if there is one: start all processes "
            "again with the same command to resume."
        ) from error


def of_all(tree: Any) -> Any:
    """The arrays of all processes: each of the pytree's with an axis of processes in front."""
    from jax.experimental import multihost_utils

    with others_needed():
        return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree))


def in_any(flag: bool) -> bool:
    """Whether the flag is true in any process."""
    return flag if jax.process_count() == 1 else bool(of_all(np.array(flag)).any())


def arrays_from_first(tree: Any) -> Any:
    """The first process's pytree of arrays; in every process one of the same form is given."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda x: x[0], of_all(tree))


def json_of_all(value: Any) -> list[Any]:
    """The JSON data of every process, in their order; a `ProcessError` if one sent no JSON."""
    data = json.dumps(value).encode()
    sizes = of_all(np.array(len(data)))
    # Few sizes, as each is a program of its own.
    row = np.zeros(max(4096, 1 << (int(sizes.max()) - 1).bit_length()), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    try:
        received = zip(of_all(row), sizes, strict=True)
        return [json.loads(sent[:size].tobytes()) for sent, size in received]
    except (ValueError, RecursionError) as error:
        raise ProcessError(
            "a process of the run sent no JSON: another program takes part. Let only the "
            "processes of the run reach the coordinator's port and one another."
        ) from error


@functools.cache
def connect_devices() -> None:
    """Connect the devices of all processes, which must be alike, at about the same time.

    CPU devices give up after 30 s: later one process may be that much slower, but not now.
    """
    with others_needed():
        owned: list[list[str]] = [[] for _ in range(jax.process_count())]
        for device in jax.devices():
            owned[device.process_index].append(device.device_kind)
        kinds = [", ".join(f"{x.count(kind)} x {kind}" for kind in sorted({*x})) for x in owned]
        other = next((index for index, others in enumerate(kinds) if others != kinds[0]), 0)
        if other:
            raise ProcessError(
                f"the processes have different devices: {kinds[0]} in process 0; {kinds[other]} in "
                f"process {other}. Give each as many of the same kind."
            )
        in_any(False)  # connects the first device of each
        mesh = device_mesh("all")
        on_every_device(lambda: jax.lax.psum(jnp.ones(()), "all"), mesh)().block_until_ready()


def agree(identity: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse to work with processes that were given something else to do, or run other code.

    A `ProcessError` in every process names what differs. `identity` gives all that must be equal,
    as JSON data; alone, a process agrees, and it is not called.
    """
    if jax.process_count() == 1:
        return
    connect_devices()
    sent = json_of_all({**identity(), "versions": versions(), "commit": commit()})
    if None in [each["commit"] for each in sent]:  # where git cannot be asked for it
        sent = [{**each, "commit": None} for each in sent]
    others = [index for index, each in enumerate(sent) if each != sent[0]]
    if others:
        what = difference(sent[0], sent[others[0]], "in process 0", f"in process {others[0]}")
        also = f" Processes {others} differ." if len(others) > 1 else ""
        raise ProcessError(
            f"the processes were not started alike: {what}.{also} Start all of them with the same "
            "command, configuration, data and code."
        )


def all_do(function: Callable[[], Value]) -> Value:
    """Run a function in every process and wait for all; if one fails, all raise its error.

    On CPU devices JAX waits for half an hour. What the function, which exchanges nothing, raises in
    one process is raised in every one: an `EDLError` as it is, and another as a `ProcessError`.
    """
    if jax.process_count() == 1:
        return function()
    value: Any = None
    failure, report = None, None
    try:
        value = function()
    except Exception as error:
        failure = error
        kind = next((x.__name__ for x in type(error).__mro__ if x in _ERRORS.values()), None)
        what = f"process {jax.process_index()} failed ({type(error).__name__}: {error})."
        report = [kind, str(error)] if kind else ["ProcessError", what]
    failed = [each for each in json_of_all(report) if each is not None]
    if not failed:
        return value
    name, text = failed[0]
    raise failure or _ERRORS.get(name, ProcessError)(text)


def first_does(function: Callable[[], Value], *, share: bool = True) -> Value:
    """Let the first process do something that may take long or fail, as of `all_do`.

    The others get what it gives as JSON data, in which tuples have become lists; or None where it
    is not shared.
    """
    if jax.process_count() == 1:
        return function()
    value: Any = all_do(function if is_first() else lambda: None)
    return json_of_all(value)[0] if share else value


def leave(status: int) -> NoReturn:
    """End this process where others may be gone: an ordinary exit would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX ends the others from C++ when the first is gone, whatever they were about to say.
    if jax.distributed.is_initialized() and is_first():
        time.sleep(_SECONDS_TO_REPORT)
    os._exit(status)
