"""How several processes find one another, before JAX is used.

JAX ends a process from C++, without a word that a user could act on, where the others do not come,
their host is unknown or the port is taken. So the processes first meet over TCP, at the address
where JAX will join them.
"""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
from typing import Any
from urllib.parse import urlsplit

import jax

from edl_jax.errors import ConfigError, ProcessError
from edl_jax.runs.processes import connect_devices
from edl_jax.validation import check_range, check_types

_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_LONGER = 1.0  # that the others wait: the first process knows who is missing
_SECONDS_TO_PART = 10  # how long the end of one process waits for the end of the others
_LONGEST = 2_000  # characters of what the first process says is wrong


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process finds the others. Alone by default.

    Raises:
      ConfigError: if only some of coordinator, num_processes and process_id are given, or one
        cannot be.
    """

    auto: bool = False
    """Join the processes of this SLURM job, TPU pod slice or Open MPI run, found by JAX itself."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where there is nothing that JAX can find the others by. It
    listens at this address only; let nobody reach it but the other processes."""
    num_processes: int | None = None
    """How many processes there are, with `coordinator`."""
    process_id: int | None = None
    """Index of this process, from 0, with `coordinator`."""
    timeout: float = 60.0
    """Seconds to wait for the other processes at the start."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "timeout", 0.0, open_low=True)
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
        if self.coordinator is not None:
            host_and_port(self.coordinator)

    @property
    def several(self) -> bool:
        """Whether there may be others."""
        return self.auto or self.coordinator is not None

    def join(self) -> None:
        """Meet the other processes, before anything else is asked of JAX; none: do nothing.

        Raises:
          ProcessError: if they cannot be found or reached, or have other devices than this one.
        """
        if not self.several:
            return
        # JAX would take SIGTERM for itself, and old versions do: `sigterm_noticed` takes it back.
        with contextlib.suppress(AttributeError):
            jax.config.update("jax_enable_preemption_service", False)
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", self.coordinator)
        address, count, index = self.coordinator, self.num_processes, self.process_id
        try:
            if self.auto:
                address, count, index = _detected(self.timeout)
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


def _detected(timeout: float) -> tuple[Any, Any, Any]:
    """What JAX finds of the others: address, number and this one's index; None if nothing."""
    try:
        from jax._src.clusters import ClusterEnv  # it has no public name

        address = os.environ.get("JAX_COORDINATOR_ADDRESS")
        detect = ClusterEnv.auto_detect_unset_distributed_params
        return detect(address, None, None, None, None, math.ceil(timeout))[:3]
    except (ImportError, AttributeError, TypeError):  # in another version of JAX: it looks itself
        return None, None, None


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of `HOST:PORT`, where HOST is a name, an IPv4 address or an IPv6 one in [].

    Raises:
      ConfigError: if the address has other parts.
    """
    with contextlib.suppress(ValueError):  # of a port that is none
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port and parts.netloc == address:
            return parts.hostname, parts.port
    raise ConfigError(
        f"coordinator is {address!r}; expected HOST:PORT of the first process, such as "
        "10.0.0.1:1234."
    )


def meet(address: str, count: int, index: int, *, seconds: float, bind: str | None) -> None:
    """Wait until all processes are there.

    Args:
      address: `HOST:PORT` of the first process; free again when this returns.
      count: how many processes there are.
      index: index of this process, from 0.
      seconds: how long to wait.
      bind: `HOST:PORT` at which the first process listens; all its addresses where None.

    Raises:
      ProcessError: if they do not come in time, the first cannot listen, two have the same index,
        or one expects another number of processes.
      ConfigError: if an address is not of the form HOST:PORT.
    """
    host, port = host_and_port(address)
    me = f"process {index} of {count}, coordinator {address}"
    if index:
        asyncio.run(_come(me, (host, port), count, index, seconds))
    else:
        at = host_and_port(bind) if bind else (None, port)
        asyncio.run(_receive(me, at, count, seconds))


async def _receive(me: str, at: tuple[str | None, int], count: int, seconds: float) -> None:
    """Be the first process: hear the others, and tell them that all are there, or what is wrong."""
    here: dict[int, asyncio.StreamWriter] = {}
    heard: list[asyncio.StreamWriter] = []
    verdict: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            match await _line(reader):
                case {"process": int(index), "of": int(expected)}:
                    pass
                case _:
                    return  # not one of ours
            problem = None
            if expected != count or not 0 < index < count:
                problem = (
                    f"process {index} came and expects {expected} processes, process 0 {count}"
                )
            elif index in here:
                problem = f"two processes came with the index {index}"
            here[index] = writer
            heard.append(writer)
            if not verdict.done() and (problem or len(here) == count - 1):
                verdict.set_result(problem)
            with contextlib.suppress(OSError):
                await reader.read(1)  # until it leaves
            if here.get(index) is writer:
                del here[index]

    tasks = set()

    def open_door(*connection: Any) -> None:
        # asyncio would report a task of its own that still waits in the end as an error.
        tasks.add(asyncio.ensure_future(hear(*connection)))

    try:
        server = await asyncio.start_server(open_door, *at)
    except OSError as error:
        raise ProcessError(
            f"the processes did not meet: {me} cannot listen there ({error}). Give an address of "
            "this host, and a port that no other program has."
        ) from error
    if count == 1:
        verdict.set_result(None)
    try:
        problem = await asyncio.wait_for(verdict, seconds)
    except TimeoutError:
        missing = sorted(set(range(1, count)) - set(here))
        names = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        problem = f"process {names} of {count} did not come to {at[0] or '*'}:{at[1]} in time"
    server.close()
    for writer in heard:
        with contextlib.suppress(OSError):
            writer.write(json.dumps({"problem": problem}).encode() + b"\n")
            await writer.drain()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if problem:
        raise _not_met(me, seconds, problem)


async def _come(me: str, at: tuple[str, int], count: int, index: int, seconds: float) -> None:
    """Be one of the others: call at the first process until it answers that all are there."""
    trouble = "nothing was tried"
    try:
        async with asyncio.timeout(seconds + _SECONDS_LONGER):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(*at)
                    trouble = "something answers, but others are missing, or it is another program"
                    with contextlib.closing(writer):
                        writer.write(json.dumps({"process": index, "of": count}).encode() + b"\n")
                        said = await _line(reader)
                    if isinstance(said, dict) and "problem" in said:
                        break
                except OSError as error:
                    trouble = f"process 0 cannot be reached: {error}"
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
    except TimeoutError:
        raise _not_met(me, seconds, trouble) from None
    if said["problem"]:
        raise _not_met(me, seconds, str(said["problem"])[:_LONGEST])


async def _line(reader: asyncio.StreamReader) -> Any:
    """The JSON value on the next line, None if it is none."""
    try:
        return json.loads(await reader.readline())
    except (OSError, ValueError, RecursionError):
        return None


def _not_met(me: str, seconds: float, problem: str) -> ProcessError:
    return ProcessError(
        f"the processes did not meet ({me}, timeout {seconds:g} s): {problem}. Start all with the "
        "same coordinator and number of processes, each with its own index; --processes.timeout "
        "sets how long they wait."
    )
