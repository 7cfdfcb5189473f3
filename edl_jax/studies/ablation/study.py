"""Ablate the evolution: mutations, selections, step sizes and more, over many seeds."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from edl_jax.evolution import PretrainConfig
from edl_jax.evolution.pretraining import own_parts
from edl_jax.runs.folder import RunFolder, as_json, open_run
from edl_jax.runs.preemption import preemptible
from edl_jax.studies.ablation.axes import Cell
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.downstream import train_downstream
from edl_jax.studies.ablation.results import ablation_results
from edl_jax.studies.ablation.seeds import keys_of, make_seed_runs
from edl_jax.studies.results import StudyResults, check_libraries
from edl_jax.validation import config_or_default

CELLS = "cells.jsonl"
_POINTS = 60  # of a curve that are kept, early generations more densely


@dataclasses.dataclass(frozen=True)
class AblateResult:
    """What `ablate` gives.

    Attributes:
      cells: one for each cell, as `run_cell` gives it.
      downstream: one for each loss that was trained with: where it comes from, its metrics and
        `accuracy`.
      results: tables, figures and the paragraph that reads them.
    """

    cells: list[dict[str, Any]]
    downstream: list[dict[str, Any]]
    results: StudyResults


def ablate(
    config: AblateConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> AblateResult:
    """Evolve every cell over all seeds, and compare.

    Args:
      config: what to compare; the defaults unless given.
      run_dir: where cells are kept as they finish, and where tables and figures go; a cell found
        there is not run again. Nothing is written unless given.
      progress: whether to show progress bars.

    Raises:
      ConfigError, DataError: if a strategy refuses the configuration, a severity ranks nothing, or
        the data cannot be used.
      RunFolderError: if `run_dir` holds another ablation, is in use by another run, is damaged, or
        cannot be read or written.
      Preempted: on SIGTERM, after the chunk of generations or the epoch under way; only with
        `run_dir`.
      EDLError: if a library that studies need is missing.
    """
    config = config_or_default(config, AblateConfig)
    check_libraries()
    with contextlib.ExitStack() as stack:
        folder = None
        if run_dir is not None:
            identity: dict[str, Any] = {"ablate": as_json(config)}
            if parts := own_parts(*map(config.config_of, config.cells())):
                identity["parts"] = parts
            folder = stack.enter_context(open_run(run_dir, identity))
        return _ablate(config, folder, progress)


def _ablate(config: AblateConfig, folder: RunFolder | None, progress: bool) -> AblateResult:
    """Ablate, and keep what is found in a folder, if there is one."""
    rows = [] if folder is None else folder.resume_rows(name=CELLS, check=check_row)
    found = {cell_of(row): row for row in rows}
    missing = [cell for cell in config.cells() if cell not in found]
    seeds = range(config.pretrain.seed, config.pretrain.seed + config.num_seeds)
    bar = tqdm(
        total=len(missing) * config.pretrain.generations,
        desc=f"{len(missing)} cells",
        unit="gen",
        disable=not progress,
    )
    with preemptible(folder is not None) as check_stop:

        def advanced(generations: int) -> None:
            check_stop()
            bar.update(generations)

        with bar:
            for cell in missing:
                bar.set_postfix_str(", ".join(map(str, cell)))
                measured = run_cell(config.config_of(cell), seeds, config.thresholds, advanced)
                found[cell] = {**cell.compared(), **measured}
                if folder is not None:
                    folder.append_rows([found[cell]], CELLS)
        cells, downstream = [found[cell] for cell in config.cells()], []
        if config.downstream_losses:
            downstream = train_downstream(config, folder, progress, check_stop)
        results = ablation_results(config, cells, downstream)
        if folder is not None:
            results.write(folder)
    return AblateResult(cells, downstream, results)


def run_cell(
    config: PretrainConfig,
    seeds: Sequence[int],
    thresholds: Sequence[float],
    advanced: Callable[[int], Any] = lambda generations: None,
) -> dict[str, Any]:
    """Evolve from all seeds in one program.

    Args:
      config: the cell's configuration.
      seeds: the seeds.
      thresholds: values of the objective.
      advanced: called with the number of generations after each chunk of them.

    Returns:
      JSON data, None for what is not finite: `seeds`; `generations` and `curves`, some generations
      (counted from 1) and for each seed the objective of their leaders on held-out pairs;
      `reached`, for each threshold and seed the first generation whose leader is at or below it,
      None if there was none; `area`, for each seed the mean objective over all generations;
      `final`, for each seed the metrics of the winner (`SeedRuns.measure`); `step_sizes` of the
      last generation; `evaluations` of networks for each seed; `compile_seconds` and `run_seconds`
      of the evolutions, and `measure_seconds` of choosing and measuring the winners.
    """
    runs, keys = make_seed_runs(config, len(seeds)), keys_of(seeds)
    progress = runs.init(keys)
    began = time.perf_counter()
    advance = runs.advance.lower(keys, progress, np.int32(0), np.int32(0)).compile()
    compiled = time.perf_counter()
    for first in range(0, config.generations, config.generations_per_chunk):
        last = min(first + config.generations_per_chunk, config.generations)
        progress = jax.block_until_ready(advance(keys, progress, np.int32(first), np.int32(last)))
        advanced(last - first)
    ran = time.perf_counter()
    final = runs.measure(keys, runs.winners(keys, progress))
    measured = time.perf_counter()
    curve, step_sizes = np.asarray(progress.curve), np.asarray(progress.step_sizes)
    kept = np.geomspace(1, config.generations, _POINTS).round().astype(int)
    kept = np.unique(kept) - 1
    return {
        "seeds": list(seeds),
        "generations": (kept + 1).tolist(),
        "curves": [[_finite(x) for x in own] for own in curve[kept].T],
        "reached": {
            f"{threshold:g}": [first_reached(own, threshold) for own in curve.T]
            for threshold in thresholds
        },
        "area": [_finite(own.mean()) for own in curve.T],
        "final": [{name: _finite(x) for name, x in metrics.items()} for metrics in final],
        "step_sizes": [_finite(x) for x in step_sizes],
        "evaluations": config.generations * config.population_size,
        "compile_seconds": compiled - began,
        "run_seconds": ran - compiled,
        "measure_seconds": measured - ran,
    }


def first_reached(curve: np.ndarray, threshold: float) -> int | None:
    """The first generation, counted from 1, at or below a threshold in a curve `[generations]`."""
    below = np.flatnonzero(curve <= threshold)
    return int(below[0]) + 1 if len(below) else None


def cell_of(row: dict[str, Any]) -> Cell:
    """The cell of a row of cells.jsonl."""
    values = {field: row[field] for field in Cell._fields if field in row}
    values |= {field: tuple(value) for field, value in values.items() if isinstance(value, list)}
    return Cell(**values)


def check_row(row: dict[str, Any]) -> None:
    """Refuse, by a `KeyError`, `TypeError` or `ValueError`, a row that cannot be compared."""
    hash(cell_of(row))
    n = len(row["seeds"])
    shapes = {"curves": (n, len(row["generations"])), "area": (n,), "step_sizes": (n,)}
    found = {name: np.asarray(row[name], float).shape for name in shapes}
    reached = np.asarray([*dict(row["reached"]).values()], float).shape[1:]
    if found != shapes or reached != (n,) or len(row["final"]) != n:
        raise ValueError(f"it is not of {n} seeds")
    np.asarray([x for metrics in row["final"] for x in dict(metrics).values()], float)
    if not row["evaluations"] > 0 < row["run_seconds"]:
        raise ValueError("it has no speed")


def _finite(value: float) -> float | None:
    """Seven digits, all that a float32 has."""
    return float(f"{value:.7g}") if np.isfinite(value) else None
