"""How several processes find one another, before JAX is used.

JAX ends a process from C++ where the others do not come, or the port is taken. So the processes
first meet over TCP, at the address where JAX will join them.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import jax

from edl_jax.checked import Checked, Positive
from edl_jax.errors import ConfigError, ProcessError
from edl_jax.runs.processes import connect_devices

_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_LONGER = 1.0  # that the others wait: the first process knows who is missing
_SECONDS_TO_PART = 10  # how long the end of one process waits for the end of the others
_SECONDS_TO_NAME_ITSELF = 1.0  # for whoever calls


@dataclasses.dataclass(frozen=True)
class Processes(Checked):
    """How this process finds the others. Alone by default."""

    auto: bool = False
    """Join the processes of this SLURM job, TPU pod slice or Open MPI run, found by JAX itself."""
    coordinator: str | None = None
    """HOST:PORT of the first process, if JAX cannot find the others by itself. The first process
    listens only at this address; let only the other processes reach it."""
    num_processes: int | None = None
    """Number of processes; used with `coordinator`."""
    process_id: int | None = None
    """Index of this process, from 0; used with `coordinator`."""
    timeout: Positive = 60.0
    """Seconds to wait for the other processes at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        address, count, index = self.coordinator, self.num_processes, self.process_id
        if (address, count, index) == (None, None, None):
            return
        if address is None or count is None or index is None or self.auto or not 0 <= index < count:
            raise ConfigError(
                f"coordinator is {address!r}, num_processes {count!r} and process_id {index!r}; "
                "expected all three or none, none with auto, and a process_id from 0 to "
                "num_processes - 1."
            )
        host_and_port(address)

    @property
    def several(self) -> bool:
        """Whether there may be others."""
        return self.auto or self.coordinator is not None

    def join(self) -> None:
        """Meet the other processes, if any, before anything else is asked of JAX.

        Raises:
          ProcessError: if they cannot be found or reached, or have other devices than this one.
        """
        if not self.several:
            return
        # JAX would take SIGTERM for itself; where it does, `noticed` takes it back.
        with contextlib.suppress(AttributeError):
            jax.config.update("jax_enable_preemption_service", False)
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", self.coordinator)
        address, count, index = self.coordinator, self.num_processes, self.process_id
        try:
            if self.auto:
                address, count, index = _detected(math.ceil(self.timeout))
            if address is not None and count is not None and index is not None:
                meet(address, count, index, seconds=self.timeout, bind=bind)
            jax.distributed.initialize(
                address,
                count,
                index,
                coordinator_bind_address=bind,
                shutdown_timeout_seconds=_SECONDS_TO_PART,
            )
        except (ValueError, RuntimeError) as error:
            raise ProcessError(
                f"the processes did not meet ({error}). Join once, before JAX is used; where JAX "
                "finds no others by itself, give coordinator, num_processes and process_id, the "
                "same coordinator to all."
            ) from error
        connect_devices()


def _detected(seconds: int) -> tuple[Any, Any, Any]:
    """What JAX finds of the others: address, number and this one's index; None if nothing."""
    try:
        from jax._src.clusters import ClusterEnv  # it has no public name

        address = os.environ.get("JAX_COORDINATOR_ADDRESS")
        detect = ClusterEnv.auto_detect_unset_distributed_params
        return detect(address, None, None, None, None, seconds)[:3]
    except (ImportError, AttributeError, TypeError):  # in another version of JAX: it looks itself
        return None, None, None


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of `HOST:PORT`, where HOST is a name, an IPv4 address or an IPv6 one in []."""
    with contextlib.suppress(ValueError):  # of a port that is none
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address:
            return parts.hostname, parts.port
    raise ConfigError(
        f"coordinator is {address!r}; expected HOST:PORT of the first process, such as "
        "10.0.0.1:1234."
    )


def meet(address: str, count: int, index: int, *, seconds: float, bind: str | None = None) -> None:
    """Wait until all processes are there; a `ProcessError` says in each why they did not meet.

    The first listens at `bind`, or at that port of all its host's addresses, until this returns.
    """
    at, deadline = host_and_port(address), time.monotonic() + seconds
    if index:
        problem = _call(at, [index, count], deadline + _SECONDS_LONGER)
    else:
        problem = _gather(host_and_port(bind) if bind else ("0.0.0.0", at[1]), count, deadline)
    if problem:
        raise ProcessError(
            f"the processes did not meet (process {index} of {count}, coordinator {address}, "
            f"timeout {seconds:g} s): {problem}. Start all with the same coordinator and number of "
            "processes, each with its own index; --processes.timeout sets how long they wait."
        )


def _gather(at: tuple[str, int], count: int, deadline: float) -> str:
    """Be the first process: hear the others, and tell them that all are there, or what is wrong."""
    others, missing, problem = [], set(range(1, count)), ""
    with contextlib.ExitStack() as stack:
        try:
            family = socket.getaddrinfo(*at, type=socket.SOCK_STREAM)[0][0]
            server = stack.enter_context(socket.create_server(at, family=family))
            while missing and not problem:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                other = stack.enter_context(server.accept()[0])
                match _heard(other, _SECONDS_TO_NAME_ITSELF):
                    case [int(index), int(expected)]:  # one of ours
                        others.append(other)
                        if expected != count:
                            problem = f"process {index} came and expects {expected} processes"
                            problem += f", process 0 {count}"
                        elif index not in missing:
                            problem = f"two processes came with the index {index}"
                        missing -= {index}
        except TimeoutError:
            names = ", ".join(map(str, sorted(missing)[:10])) + ", ..." * (len(missing) > 10)
            problem = f"process {names} of {count} did not come to {at[0]}:{at[1]} in time"
        except OSError as error:
            return f"process 0 cannot listen there ({error}): give a free port of its host"
        for other in others:
            _say(other, problem)
    return problem


def _call(at: tuple[str, int], who: list[int], deadline: float) -> str:
    """Be one of the others: call at the first process until it answers that all are there."""
    trouble = "nothing was tried"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(at, timeout=left) as first:
                _say(first, who)
                trouble = "something answers, but others are missing, or it is another program"
                if isinstance(problem := _heard(first, deadline - time.monotonic()), str):
                    return problem
        except OSError as error:
            trouble = f"process 0 cannot be reached: {error}"
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return trouble


def _say(other: socket.socket, value: object) -> None:
    with contextlib.suppress(OSError):  # it has left
        other.sendall(json.dumps(value).encode() + b"\n")


def _heard(other: socket.socket, seconds: float) -> Any:
    """The JSON value that the other says in one line in time, None if it says something else."""
    try:
        other.settimeout(max(0.01, seconds))
        with other.makefile("rb") as stream:
            return json.loads(stream.readline(2000))
    except (OSError, ValueError, RecursionError):
        return None
