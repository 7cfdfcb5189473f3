"""Several processes, on one host or many, that run one program together by `jax.distributed`.

The first process (of index 0) owns the run folder; the others need none, nor a shared disk: what
they must know of it is broadcast to them.
"""

import contextlib
import dataclasses
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from edl_jax.errors import ConfigError, EDLError, ProcessError
from edl_jax.validation import check_types

Value = TypeVar("Value")

_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_SECONDS_TO_PART = 10  # how long the end of one process waits for the end of the others


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process finds the others. Alone unless told otherwise.

    Raises:
      ConfigError: if only some of coordinator, num_processes and process_id are given, or one
        cannot be.
    """

    auto: bool = False
    """Join the processes of this SLURM job, TPU pod slice or Open MPI run, found by JAX itself."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where there is nothing that JAX can find the others by."""
    num_processes: int | None = None
    """How many processes there are, with `coordinator`."""
    process_id: int | None = None
    """Index of this process, from 0, with `coordinator`."""

    def __post_init__(self) -> None:
        check_types(self)
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(x is not None for x in given) and (None in given or self.auto):
            raise ConfigError(
                f"coordinator is {self.coordinator!r}, num_processes {self.num_processes!r} and "
                f"process_id {self.process_id!r}; expected all three or none, and none with auto."
            )
        count, index = self.num_processes, self.process_id
        if count is not None and index is not None and not 0 <= index < count:
            raise ConfigError(
                f"process_id is {index} of num_processes {count}; expected 0 to {count - 1}."
            )

    @property
    def several(self) -> bool:
        """Whether there may be others."""
        return self.auto or self.coordinator is not None

    def join(self) -> None:
        """Meet the other processes, before anything else is asked of JAX; none: do nothing.

        Raises:
          ProcessError: if they cannot be found or reached.
        """
        if not self.several:
            return
        # JAX would take SIGTERM for itself, and old versions do: `sigterm_noticed` takes it back.
        with contextlib.suppress(AttributeError):
            jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                shutdown_timeout_seconds=_SECONDS_TO_PART,
            )
        except (ValueError, RuntimeError) as error:
            raise ProcessError(
                f"the processes did not meet ({error}). Join once, before JAX is used; where JAX "
                "finds no others by itself, give coordinator, num_processes and process_id, the "
                "same coordinator to all."
            ) from error


def is_first() -> bool:
    """Whether this process owns the run folder."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """The first process's value, in every process: any pytree of arrays and plain data.

    Called by every process, in the same order; alone, it gives back the value.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    data = np.frombuffer(pickle.dumps(value) if is_first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(data.size)))
    buffer = np.zeros(size, np.uint8)
    buffer[: data.size] = data
    shared = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return pickle.loads(shared.tobytes())  # written by a process of this very run


def first_does(function: Callable[[], Value], *, share: bool = True) -> Value:
    """Let the first process do something that may fail; its `EDLError` is raised in every process.

    Called by every process, in the same order.

    Args:
      function: what to do; the others do not call it.
      share: whether the others get what it gives, or None.
    """
    value, error = None, None
    if is_first():
        try:
            value = function()
        except EDLError as refused:
            error = refused
    if (failed := from_first(error)) is not None:
        raise failed
    return from_first(value) if share else value  # pyright: ignore[reportReturnType]


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
            "again with the same command to go on."
        ) from error


def in_any(flag: bool) -> bool:
    """Whether the flag is true in any process. Called by every process, in the same order."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
