"""Several processes, on one host or many, that run one program together by `jax.distributed`.

The first process (of index 0) owns the run folder; the others need none, nor a shared disk: what
they must know of it, it sends them. What exchanges something is called by every process, in the
same order.
"""

import functools
import hashlib
import json
import os
import reprlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax import errors
from edl_jax.errors import EDLError, ProcessError
from edl_jax.runs.devices import device_mesh, on_every_device
from edl_jax.runs.environment import commit, differences, versions
from edl_jax.runs.exchange import (
    arrays_from_first,
    as_row,
    in_any,
    json_from,
    not_as_sent,
    others_needed,
    rows_of_all,
)

Value = TypeVar("Value")

_ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, EDLError)
}
_BUSY, _DONE, _FAILED = range(3)
_SECONDS_BETWEEN_SIGNS = 1.0  # of life, while others wait
_SECONDS_TO_SPEAK = 2  # how long the first process, when all fail, lets the others say why
_MOST_DIFFERENCES = 6  # that are told
_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def is_first() -> bool:
    """Whether this process owns the run folder."""
    return jax.process_index() == 0


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
    digests = rows_of_all(as_row(hashlib.sha256(text.encode()).digest()))
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

    Args:
      function: what to do; it exchanges nothing with the others.

    Raises:
      EDLError: what the function raised in one of the processes is raised in every one.
      ProcessError: likewise, where it was another exception, which that process raises; or if a
        process is gone.
    """
    if jax.process_count() == 1:
        return function()
    state, finished = [_BUSY], threading.Event()
    seen: list[np.ndarray | Exception] = []

    def show() -> None:
        # One exchange would have to wait for the slowest process, which JAX does for 30 minutes.
        try:
            while True:
                finished.wait(_SECONDS_BETWEEN_SIGNS)
                states = rows_of_all(np.array(state, np.uint8))
                if (states == _FAILED).any() or (states == _DONE).all():
                    return seen.append(states)
        except Exception as error:
            seen.append(error)

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    value, failure = None, None
    try:
        value = function()
        state[0] = _DONE
    except Exception as error:
        failure, state[0] = error, _FAILED
    except BaseException:  # such as Ctrl-C; the others learn no more than that
        state[0] = _FAILED
        finished.set()
        raise
    finished.set()
    shower.join()
    if isinstance(seen[0], Exception):
        raise failure or seen[0]
    if not (failed := np.flatnonzero(seen[0] == _FAILED)).size:
        return value  # pyright: ignore[reportReturnType]
    which = int(failed[0])
    kind, text = _checked(json_from(which, failure and _told(failure, which)))
    raise failure or _ERRORS[kind](text)


def first_does(function: Callable[[], Value], *, share: bool = True, like: Any = None) -> Value:
    """Let the first process do something that may take long or fail; the others wait.

    Args:
      function: what to do; the others do not call it. Without `like` it gives JSON data, with it a
        pair of JSON data and a pytree of arrays.
      share: whether the others get what it gives, or None.
      like: a pytree of arrays of the same structure, shapes and dtypes, in every process.

    Returns:
      What the function gave; where it is shared, tuples have become lists.

    Raises:
      EDLError: what the function raised, in every process.
      ProcessError: as of `all_do`.
    """
    if jax.process_count() == 1:
        return function()
    value: Any = all_do(function if is_first() else lambda: None)
    if not share:
        return value
    if like is None:
        return json_from(0, value)
    plain, tree = value if is_first() else (None, like)
    return json_from(0, plain), arrays_from_first(tree, like)  # pyright: ignore[reportReturnType]


def leave(status: int) -> NoReturn:
    """End this process where others may be gone: an ordinary exit would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX ends the others from C++ when the first is gone, whatever they were about to say.
    if jax.distributed.is_initialized() and is_first():
        time.sleep(_SECONDS_TO_SPEAK)
    os._exit(status)


def _told(error: Exception, index: int) -> list[str]:
    """An error as JSON: its kind, or the next wider one of `_ERRORS`, and its message."""
    if not isinstance(error, EDLError):
        return ["ProcessError", f"process {index} failed ({type(error).__name__}: {error})."]
    return [next(x.__name__ for x in type(error).__mro__ if x.__name__ in _ERRORS), str(error)]


def _checked(told: Any) -> list[str]:
    match told:
        case [str(kind), str(text)] if kind in _ERRORS:
            return [kind, text]
    raise not_as_sent("an error of no known kind")
