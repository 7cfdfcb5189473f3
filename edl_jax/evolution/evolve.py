"""Evolve the solutions of any evosax problem with any evosax strategy."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.problems import Problem
from evosax.types import Solution

from edl_jax.checked import Count, check, checked_key
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.run import POPULATION, Evolution, run_keys
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import Row, open_run
from edl_jax.runs.processes import first_does, is_first
from edl_jax.strategies import StrategyConfig, build_strategy


class Evolved(NamedTuple):
    """The result of `evolve`.

    Attributes:
      solution: the best solution.
      fitness: its mean fitness over fresh draws.
      history: by name, one value for each generation, `[generations]` float64: `best_fitness`,
        `mean_fitness`, `step_size` (NaN where the strategy has none), `failed` (solutions whose
        fitness is not finite), and of the best the metrics that the problem gives each solution.
    """

    solution: Solution
    fitness: float
    history: dict[str, np.ndarray]


def evolve(
    problem: Problem,
    strategy: str | EvolutionaryAlgorithm,
    key: jax.Array,
    *,
    generations: int,
    params: Any = None,
    population_size: int = PretrainConfig.population_size,
    draws: int = 1,
    generations_per_chunk: int = PretrainConfig.generations_per_chunk,
    run_dir: str | os.PathLike[str] | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> Evolved:
    """Evolve solutions of any evosax problem with any evosax strategy.

    Args:
      problem: lower fitness is better. On several devices its state must not depend on solutions.
      strategy: an evosax algorithm, or a name in `STRATEGIES`.
      key: a key from `jax.random.key`; the same key on the same devices gives the same bits.
      generations: how many to evolve.
      params: parameters of the strategy; its own defaults if None.
      population_size: of a strategy that is named.
      draws: evaluations by fresh keys that choose the best of the last; more where it is noisy.
      generations_per_chunk: generations between two checkpoints.
      run_dir: where to keep metrics and checkpoints; an evolution that was stopped there resumes.
        Nothing is written by default.
      devices: some of `jax.devices()`, among which the population is divided; all by default.
      progress: whether to tell how far it is.

    Raises:
      ConfigError: if an argument is none of these, or a population of that size cannot be served.
      RunFolderError: if `run_dir` holds another run, is in use or damaged, or cannot be written.
      EDLError: if every solution of a generation fails.

    >>> from evosax.problems import BBOBProblem
    >>> found = evolve(BBOBProblem("sphere"), "ChaoticES", jax.random.key(0), generations=50)
    >>> found.history["best_fitness"].shape
    (50,)
    """
    problem = check("problem", problem, Problem)
    generations = check("generations", generations, Count)
    draws = check("draws", draws, Count)
    if isinstance(strategy := check("strategy", strategy, str | EvolutionaryAlgorithm), str):
        named = StrategyConfig(strategy)
        config = PretrainConfig(
            strategy=named, population_size=population_size, generations=generations
        )
        strategy, own = build_strategy(config, problem.sample)
        params = own if params is None else params
    defaults = jax.eval_shape(lambda: strategy.default_params)  # CMA-ES computes them
    check("params", params, type(defaults) | None)
    mesh = device_mesh(POPULATION, devices)
    chunk = check("generations_per_chunk", generations_per_chunk, Count)
    options = {"generations": generations, "chunk": chunk, "mesh": mesh}
    evolution = Evolution(problem, strategy, params, **options)
    key, parts = checked_key(key), {"problem": problem, "strategy": strategy, "params": params}
    identity = lambda: {  # noqa: E731
        "key": jax.random.key_data(key).tolist(),
        "generations": generations,
        "parts": {name: describe(part) for name, part in parts.items()},
    }
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: None if run_dir is None else stack.enter_context(open_run(run_dir, identity())),
            share=False,
        )
        kept = {"folder": folder, "progress": progress and is_first()}
        return run_evolution(evolution, key, draws, **kept)[0]


def run_evolution(
    evolution: Evolution, key: jax.Array, draws: int, **options: Any
) -> tuple[Evolved, list[Row]]:
    """What an evolution comes to, and the rows of what was measured."""
    state, (rows, measured) = fit(evolution, key, **options)
    solution, fitness = evolution.best(state, run_keys(key)[2], draws)
    history = {name: x for name, x in columns(rows).items() if name != "generation"}
    return Evolved(solution, fitness, history), measured


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as arrays by name, NaN where a row has no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.asarray([row.get(name) for row in rows], np.float64) for name in names}
