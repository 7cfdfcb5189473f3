"""Where the cells of a sweep run: in this process, in one process a core, or on a Dask cluster."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from typing import Any

import jax

from edl_jax.data import DATASETS
from edl_jax.errors import ConfigError, EDLError, shortened
from edl_jax.losses import LOSSES
from edl_jax.objective import MARGINS, SEVERITIES
from edl_jax.runs.folder import Row
from edl_jax.strategies import MUTATIONS, STRATEGIES
from edl_jax.studies.figures import check_libraries

_TABLES: Any = (DATASETS, LOSSES, MARGINS, MUTATIONS, SEVERITIES, STRATEGIES)


@contextlib.contextmanager
def open_executor(where: str | Executor | None) -> Iterator[Executor | None]:
    """The executor that a user names, as for `sweep`; None is this process and thread."""
    if where is None and jax.default_backend() == "cpu" and jax.device_count() == 1:
        check_libraries("loky")
        import loky

        where = str(loky.cpu_count())  # of a container or a batch job, its share
    if where is None or where == "1":
        yield None
    elif not isinstance(where, str):
        yield where
    elif where.startswith("dask://"):
        with _dask(where.removeprefix("dask://")) as client:
            yield client.get_executor(pure=False)
    elif where.isdecimal() and int(where):
        with _processes(int(where)) as pool:
            yield pool
    else:
        raise ConfigError(
            f"executor is {where!r}; expected a number of processes, such as 4, or the address of "
            "a Dask scheduler, dask://HOST:PORT."
        )


def attempt(run: Callable[..., Row], *arguments: object) -> Row:
    """What a cell gives; `error` where it fails, or where a cluster lost it too often."""
    try:
        return run(*arguments)
    except BrokenExecutor:
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {shortened(error)}"}


def packed(run: Callable[[Any], Row], config: object) -> bytes:
    """A cell for another process, with all that the user defined and registered in this one."""
    import cloudpickle

    for name, module in list(sys.modules.items()):
        if name.startswith("edl_config_"):  # a file for --config, which others cannot import
            cloudpickle.register_pickle_by_value(module)
    registered = [
        {name: table[name] for name in table if not table.is_protected(name)} for table in _TABLES
    ]
    return cloudpickle.dumps((run, config, registered))


def attempt_packed(cell: bytes) -> Row:
    """`attempt` a cell in the process that it was packed for."""
    import cloudpickle

    run, config, registered = cloudpickle.loads(cell)
    for table, parts in zip(_TABLES, registered, strict=True):
        for name, part in parts.items():
            table.register(name)(part)
    return attempt(run, config)


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Executor]:
    check_libraries("loky")
    from loky import ProcessPoolExecutor

    # Unlike the standard library's, its processes do not run the user's script again, are given an
    # environment before they load JAX, and can be ended at once.
    env = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env["NPROC"] = "1"  # read by XLA's CPU backend
    if cache := jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        env["JAX_COMPILATION_CACHE_DIR"] = cache
    pool = ProcessPoolExecutor(count, timeout=None, env=env, initializer=_leave_signals)
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


def _leave_signals() -> None:
    """Ctrl-C and a batch system's SIGTERM go to all processes: the first one ends the others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _dask(address: str) -> Any:
    check_libraries("distributed", extra="cluster")
    from distributed import Client

    try:
        return Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise EDLError(
            f"there is no Dask scheduler at {address} ({shortened(error)}); start one with "
            "`dask scheduler`, or leave --executor out."
        ) from error
