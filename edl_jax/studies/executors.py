"""Where the cells of a sweep run: in this process, in one process a core, or on a Dask cluster."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from edl_jax.data import DATASETS
from edl_jax.errors import ConfigError, EDLError, InputError, shortened
from edl_jax.losses import LOSSES
from edl_jax.methods import METHODS
from edl_jax.models import MODELS
from edl_jax.objective import MARGINS, SEVERITIES
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import Row
from edl_jax.strategies import MUTATIONS, STRATEGIES
from edl_jax.studies.cells import kept
from edl_jax.studies.figures import check_libraries

_TABLES: Any = (DATASETS, LOSSES, MARGINS, METHODS, MODELS, MUTATIONS, SEVERITIES, STRATEGIES)


@contextlib.contextmanager
def open_executor(where: Executor | str | int | None) -> Iterator[Executor | None]:
    """The executor that a user names, as for `sweep`; None is this process and thread."""
    if where is None and jax.default_backend() == "cpu" and jax.device_count() == 1:
        check_libraries("loky")
        import loky

        where = loky.cpu_count()  # of a container or a batch job, its share
    name = str(where)
    if where is None or name == "1":
        yield None
    elif hasattr(where, "submit"):
        yield where  # pyright: ignore[reportReturnType]
    elif name.startswith("dask://"):
        with _dask(name.removeprefix("dask://")) as client:
            yield client.get_executor(pure=False)
    elif name.isdecimal() and int(name):
        with _processes(int(name)) as pool:
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
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {shortened(error)}"}


def row_of(run: Callable[[Any], Row], config: object, own: Row) -> Row:
    """What `run` gives, as JSON has it; `own` is what the sweep itself says of the cell."""
    given = run(config)
    try:
        measures = jsonable(dict(given), json.JSONEncoder().default)
    except (TypeError, ValueError) as error:
        text, expected = shortened(repr(given)), "a dictionary of JSON data, as {'accuracy': 0.9}"
        raise InputError(f"run gave {text} ({error}); expected {expected}.") from error
    if clash := [k for k, x in measures.items() if k == "error" or own.get(k, x) != x]:
        raise InputError(f"run gave {clash[0]!r}, a column of sweep's own; expected another name.")
    return measures


def jsonable(value: Any, other: Callable[[Any], Any] = describe) -> Any:
    """A value as JSON gives it back: tuples as lists, dataclasses as dictionaries, NaN as None."""

    def simpler(x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic | jax.Array):
            return x.tolist()
        with contextlib.suppress(TypeError):
            return dataclasses.asdict(x)
        return other(x)

    return json.loads(json.dumps(value, default=simpler), parse_constant=lambda _: None)


def results(
    run: Callable[[Any], Row], cells: Mapping[str, tuple[Any, Row]], pool: Executor | None
) -> Generator[tuple[str, Row]]:
    """Keys of cells and what `row_of` gives for them, as they end."""
    if pool is None:
        for key, cell in cells.items():
            yield key, attempt(row_of, run, *cell)
        return
    own = [{k: x for k, x in table.items() if not table.is_protected(k)} for table in _TABLES]
    shared, ahead, waiting = (_packed(run), _packed(*own)), iter(cells.items()), {}
    workers = getattr(pool, "_max_workers", None) or len(cells)  # a cluster does not tell
    try:
        while True:
            # Few at a time: what waits, and all that it holds, takes memory.
            for key, cell in itertools.islice(ahead, 2 * workers - len(waiting)):
                waiting[pool.submit(_attempt_packed, *shared, _packed(*cell))] = key
            if not waiting:
                break
            # Looked at in turn: jobs of submitit are no futures of the standard library.
            for future in [x for x in waiting if x.done()]:
                yield waiting.pop(future), attempt(future.result)
            time.sleep(0.05)
    except BrokenExecutor as error:
        raise EDLError(
            f"a process that ran cells is gone ({shortened(error)}), perhaps for lack of memory. "
            "What had ended is kept: the same command, with fewer processes (--executor), resumes "
            "from there."
        ) from error
    finally:
        for future in waiting:
            if "loky" not in type(future).__module__:  # its pool has begun all that it was given
                future.cancel()


def _packed(*parts: object) -> bytes:
    """Parts for another process, with the definitions of what it cannot import."""
    import cloudpickle

    for name, module in list(sys.modules.items()):
        if name.startswith("edl_config_"):  # a file for --config
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(parts)


def _attempt_packed(run: bytes, registered: bytes, cell: bytes) -> Row:
    """`attempt` a cell in another process, with all that the user registered in the first."""
    _register(registered)
    return attempt(row_of, *pickle.loads(run), *pickle.loads(cell))


@functools.lru_cache(maxsize=1)  # until something else is registered
def _register(parts: bytes) -> None:
    kept.cache_clear()  # the code of the user's own losses and models may have changed
    for table, own in zip(_TABLES, pickle.loads(parts), strict=True):
        for name, part in own.items():
            table.register(name)(part)


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
    pool = ProcessPoolExecutor(count, env=env, initializer=_serve, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


def _serve(first: int) -> None:
    """Leave signals, which go to all processes, to the first one, and end when that has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which outlives a process killed

    def end() -> None:
        while os.getppid() == first:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


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
