"""One sweep for all studies: a base configuration, a grid over any of its fields, and seeds."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from flax.traverse_util import unflatten_dict
from tqdm import tqdm

from edl_jax.checked import config_or_default
from edl_jax.errors import ConfigError, EDLError, shortened
from edl_jax.runs.describing import describe, describe_config
from edl_jax.runs.folder import Row, RunFolder, open_run
from edl_jax.runs.storage import user_path
from edl_jax.studies.executors import jsonable, open_executor, results
from edl_jax.studies.figures import check_libraries

CELLS = "cells.jsonl"
Config = TypeVar("Config")
Point = Mapping[str, Any]  # values of some fields by dotted name


def sweep(
    base: Any,
    grid: Mapping[str, Sequence[Any]] | Sequence[Point],
    seeds: Sequence[int],
    run: Callable[[Any], Row],
    executor: Executor | str | int | None = None,
    *,
    seed_field: str = "seed",
    folder: RunFolder | None = None,
    progress: bool = False,
) -> list[Row]:
    """Run a function on every combination of a grid and seeds, each once.

    A cell that fails does not stop the others: its row has `error` in place of measures. In a run
    folder, rows are kept in `cells.jsonl` as cells end, and run again only where they failed.

    Args:
      base: a frozen dataclass, whose fields may be such dataclasses.
      grid: values by field, all combinations of which are run: `{"train.width": (8, 16)}`; or a
        list of combinations.
      seeds: values of the field `seed_field`.
      run: `(config) -> row`: a dictionary of JSON data. Other processes are sent it by cloudpickle,
        and what you registered, such as a severity.
      executor: any `concurrent.futures.Executor`, or submitit's, which is left open; a number of
        processes, such as 4, of which 1 is this one; a Dask scheduler, "dask://HOST:PORT"; or
        None: this process on an accelerator, one a core on a CPU.
      seed_field: dotted name of the field that takes the seeds.
      folder: where rows are kept; nothing is written by default. Sweeps of one
        `run` may share it, with any bases. A cell is known by its configuration alone: put what
        else its row depends on, such as a digest of the data, into the folder's identity.
      progress: whether to show a progress bar.

    Returns:
      A row for each cell, by combination and then by seed: the values that it was made with, by
      dotted name, `seed`, and what `run` gave.

    Raises:
      ConfigError: if a name is no field of `base`, or a combination cannot work.
      RunFolderError: if `cells.jsonl` is damaged or cannot be written.
      EDLError: if a process of the executor is gone, or every cell failed.
    """
    _check_arguments(base, grid, seeds, folder)
    cells, combinations = dict[str, tuple[Any, Row]](), points(grid)
    if any(seed_field in point for point in combinations):
        raise ConfigError(f"{seed_field!r} is in the grid; expected its values as `seeds`.")
    for seed in seeds:  # outermost: what runs at the same time is not compiled twice
        for point in combinations:
            config = with_fields(base, {**point, seed_field: seed})
            # Of all of the configuration: a sweep of another base may share the folder.
            key = hashlib.sha256(describe_config(config).encode()).hexdigest()[:16]
            if key in cells:
                text = shortened(describe(config))
                expected = "each once, and functions that differ under different names"
                raise ConfigError(f"two cells are {text}; expected {expected}.")
            cells[key] = config, {"key": key, **jsonable(point), "seed": jsonable(seed)}
    kept = [] if folder is None else folder.resume_rows(name=CELLS, check=_check)
    finished: dict[str, Row] = {row["key"]: row for row in kept if "error" not in row}
    missing = {key: cell for key, cell in cells.items() if key not in finished}
    with (
        open_executor(executor) as pool,
        contextlib.closing(results(run, missing, pool)) as ended,
        tqdm(total=len(missing), desc="cells", unit="cell", disable=not progress) as bar,
    ):
        for key, measures in ended:
            row = {**cells[key][1], **measures}
            if folder is not None:
                folder.append_rows([row], CELLS)
            finished[key] = row
            bar.update()
    count = len(combinations)
    rows = [finished[key] for place in range(count) for key in [*cells][place::count]]
    failures = [row["error"] for row in rows if "error" in row]
    if failures and len(failures) == len(rows):
        raise EDLError(f"all {len(rows)} cells failed, the first with {failures[0]}")
    return rows


def asked(
    config: Config | None, kind: type[Config], run_dir: str | os.PathLike[str] | None
) -> tuple[Config, Path | None]:
    """Check the configuration, the path and the libraries before any work starts."""
    check_libraries("matplotlib", "pandas", "statsmodels")
    return config_or_default(config, kind), None if run_dir is None else user_path(run_dir)


def study_folder(run_dir: Path | None, identity: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """The folder of a study, open; None where nothing is to be kept."""
    return contextlib.nullcontext() if run_dir is None else open_run(run_dir, identity)


def _check_arguments(base: Any, grid: Any, seeds: Any, folder: Any) -> None:
    def each(values: Any, kind: type) -> bool:
        return isinstance(values, Collection) and all(isinstance(x, kind) for x in values)

    by_field = each(grid.values(), Iterable) if isinstance(grid, Mapping) else each(grid, Mapping)
    for name, value, fits, expected in (
        ("base", base, dataclasses.is_dataclass(type(base)), "a dataclass, such as TrainConfig()"),
        ("grid", grid, by_field, "values by field, such as {'width': (8, 16)}, or a list of such"),
        ("seeds", seeds, each(seeds, Integral), "whole numbers, such as range(5)"),
        ("folder", folder, isinstance(folder, RunFolder | None), "an open RunFolder, or None"),
    ):
        if not fits:
            raise ConfigError(f"{name} is {shortened(repr(value))}; expected {expected}.")


def _check(row: Row) -> None:
    if not isinstance(row["key"], str) or not isinstance(row["seed"], int):
        raise ValueError(f"key and seed are {row['key']!r} and {row['seed']!r}")


def points(grid: Mapping[str, Sequence[Any]] | Sequence[Point]) -> list[Point]:
    """Every combination of a grid; a list of combinations as it is."""
    if not isinstance(grid, Mapping):
        return list(grid)
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_fields(config: Config, values: Point) -> Config:
    """A copy of a dataclass with other values of some fields, by dotted name."""
    changes, names = {}, [field.name for field in dataclasses.fields(config)]  # pyright: ignore
    try:
        nested = unflatten_dict(dict(values), sep=".")
    except TypeError as error:
        expected = "either a field or some of its own fields"
        raise ConfigError(f"values are of {', '.join(values)}; expected {expected}.") from error
    for name, value in nested.items():
        if name not in names:
            raise ConfigError(
                f"{type(config).__name__} has no field {name!r}; expected one of "
                f"{', '.join(names)}, or a field of one of these, after a dot."
            )
        inner = getattr(config, name)
        is_part = dataclasses.is_dataclass(inner) and isinstance(value, dict)
        changes[name] = with_fields(inner, value) if is_part else value
    return dataclasses.replace(config, **changes)  # pyright: ignore


def check_grid(config: Any, base: Any, fixed: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a field `grid` of which a combination with values of `fixed` cannot work."""
    for name, values in config.grid.items():
        where = f"{type(config).__name__}.grid[{name!r}]"
        if name in fixed:
            raise ConfigError(f"{where} is given; expected it left out: another field sets it.")
        if not values or len({json.dumps(jsonable(x)) for x in values}) < len(values):
            raise ConfigError(f"{where} is {values!r}; expected different values, at least one.")
    for point in points({**config.grid, **fixed}):
        with_fields(base, point)


def _grid_of(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """A grid as the command line has it: `train.width=8,16 pretrain.hidden=[16,16],[64]`."""
    grid = {}
    for word in words:
        name, _, text = word.partition("=")
        if not text:
            raise ValueError(f"{word!r} is no FIELD=VALUE,VALUE,...")
        if name in grid:
            raise ValueError(f"{name} is given twice; expected all of its values once, with commas")
        # Commas within brackets, such as of poly(epsilon=1,alpha=2), do not separate values.
        grid[name] = tuple(map(_value_of, re.split(r",(?![^(\[{]*[)\]}])", text)))
    return grid


def _value_of(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


Grid = Annotated[
    dict[str, tuple[Any, ...]],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIELD=VALUE,VALUE,...",
        instance_from_str=_grid_of,
        is_instance=lambda grid: isinstance(grid, dict),
        str_from_instance=lambda grid: [
            f"{name}={','.join(x if isinstance(x, str) else json.dumps(x) for x in values)}"
            for name, values in grid.items()
        ],
    ),
]
