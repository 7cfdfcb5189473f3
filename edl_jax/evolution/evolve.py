"""Evolve the solutions of any evosax problem, in one call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.problems import Problem
from evosax.types import Solution

from edl_jax.checked import checked_key
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.run import AXIS, Evolution
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import Row
from edl_jax.strategies import StrategyConfig, build_strategy


class Evolved(NamedTuple):
    """What `evolve` gives.

    Attributes:
      solution: the best solution.
      fitness: its mean fitness over fresh draws.
      history: by name, one value for each generation, `[generations]` float64: see
        `Evolution.advance`.
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
    devices: Sequence[Any] | None = None,
) -> Evolved:
    """Evolve the solutions of any evosax problem with any evosax strategy.

    Args:
      problem: lower fitness is better. Its state must not depend on the solutions where the
        population is divided among devices.
      strategy: an evosax algorithm, or a name in `STRATEGIES`.
      key: a key from `jax.random.key`; the same key on the same devices gives the same bits.
      generations: how many to evolve.
      params: parameters of the strategy; its own defaults if None.
      population_size: of a strategy that is named.
      draws: evaluations by fresh keys of the last candidates, among which the best is chosen: 1
        suffices unless fitness is noisy.
      devices: some of `jax.devices()`, among which the population is divided; all by default.

    Raises:
      ConfigError: if there is no such strategy, it refuses the population size, or the devices
        cannot share the population equally.
      EDLError: if every solution of a generation fails.
      InputError: if `key` is no key of `jax.random.key`.

    >>> from evosax.problems import BBOBProblem
    >>> found = evolve(BBOBProblem("sphere"), "ChaoticES", jax.random.key(0), generations=50)
    >>> found.history["best_fitness"].shape
    (50,)
    """
    if isinstance(strategy, str):
        config = PretrainConfig(
            strategy=StrategyConfig(strategy),
            population_size=population_size,
            generations=generations,
        )
        strategy, own = build_strategy(config, problem.sample)
        params = own if params is None else params
    mesh = device_mesh(AXIS, devices)
    evolution = Evolution(problem, strategy, params, generations=generations, mesh=mesh)
    _, _, key_choice, _ = run_keys(checked_key(key))
    found = fit(evolution, key)
    solution, fitness = evolution.best(found.state, key_choice, draws)
    history = columns(found.rows[0])
    del history["generation"]
    return Evolved(solution, fitness, history)


def run_keys(key: jax.Array) -> tuple[jax.Array, ...]:
    """Keys of a run: first population, generations, choice of the winner, measurement."""
    return tuple(jax.random.split(key, 4))


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as arrays by name, NaN where a row has no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.asarray([row.get(name) for row in rows], np.float64) for name in names}
