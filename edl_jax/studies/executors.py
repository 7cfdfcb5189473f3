"""Where the cells of a sweep run: in this process, in one process a core, or on a Dask cluster."""

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import jax

from edl_jax.data import DATASETS
from edl_jax.errors import ConfigError, EDLError, shortened
from edl_jax.losses import LOSSES
from edl_jax.objective import MARGINS, SEVERITIES
from edl_jax.strategies import MUTATIONS, STRATEGIES
from edl_jax.studies.figures import check_libraries

_TABLES: Any = (DATASETS, LOSSES, MARGINS, MUTATIONS, SEVERITIES, STRATEGIES)
_ONE_THREAD = {
    "NPROC": "1",  # read by XLA's CPU backend
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@contextlib.contextmanager
def open_executor(where: str | Executor | None) -> Iterator[Executor | None]:
    """The executor that a user names, as for `sweep`; None is this process and thread."""
    if where is None:
        where = _default_processes()
    if where == "1":
        opened = contextlib.nullcontext()
    elif not isinstance(where, str):
        opened = contextlib.nullcontext(where)
    elif where.startswith("dask://"):
        opened = _dask(where.removeprefix("dask://"))
    elif where.isdecimal() and int(where):
        opened = _processes(int(where))
    else:
        raise ConfigError(
            f"executor is {where!r}; expected a number of processes, such as 4, or the address of "
            "a Dask scheduler, dask://HOST:PORT."
        )
    with opened as executor:
        yield executor


def registered_parts() -> list[tuple[int, str, Any]]:
    """What the user registered in this process, which others do not know."""
    return [
        (index, name, table[name])
        for index, table in enumerate(_TABLES)
        for name in table
        if not table.is_protected(name)
    ]


def register_parts(parts: list[tuple[int, str, Any]]) -> None:
    """Register what `registered_parts` found in another process."""
    for index, name, part in parts:
        _TABLES[index].register(name)(part)


def _default_processes() -> str:
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return "1"
    counted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return str(counted or 1)


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Executor]:
    check_libraries("loky")
    from loky import ProcessPoolExecutor

    # Unlike the standard library's, its processes do not run the user's script again, are given an
    # environment before they load JAX, and can be ended at once.
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    env = {**_ONE_THREAD, "JAX_PLATFORMS": "cpu"}
    if cache is not None:
        env["JAX_COMPILATION_CACHE_DIR"] = cache
    pool = ProcessPoolExecutor(count, timeout=None, env=env, initializer=_leave_signals)
    try:
        yield pool
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise
    pool.shutdown()


def _leave_signals() -> None:
    """Ctrl-C and a batch system's SIGTERM go to all processes: the first one ends the others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Executor]:
    check_libraries("distributed", extra="cluster")
    from distributed import Client

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise EDLError(
            f"there is no Dask scheduler at {address} ({shortened(error)}); start one with "
            "`dask scheduler`, or leave --executor out."
        ) from error
    with client:
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)
