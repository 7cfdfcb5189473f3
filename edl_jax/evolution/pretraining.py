"""Evolve: the solutions of any problem by `evolve`, a loss by `pretrain`, which freezes it."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.problems import Problem
from evosax.types import Solution

from edl_jax.checked import Count, check, checked_key, config_or_default
from edl_jax.errors import ConfigError
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.problems import TASKS, RankingProblem, problem_of
from edl_jax.evolution.run import POPULATION, Evolution, run_keys
from edl_jax.losses import EvolvedLoss, Provenance
from edl_jax.objective import SEVERITIES, draw_tasks, measure, task_errors
from edl_jax.pairs import Pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.environment import versions
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import Row, as_json, open_run, own_parts, writing
from edl_jax.runs.processes import agree, first_does, is_first
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
    check("params", params, type(strategy.default_params) | None)
    mesh = device_mesh(POPULATION, devices)
    chunk = check("generations_per_chunk", generations_per_chunk, Count)
    options = {"generations": generations, "chunk": chunk, "mesh": mesh}
    evolution = Evolution(problem, strategy, params, **options)
    identity = lambda: {  # noqa: E731
        "key": jax.random.key_data(checked_key(key)).tolist(),
        "generations": generations,
        "parts": {
            name: describe(part)
            for name, part in (("problem", problem), ("strategy", strategy), ("params", params))
        },
    }
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: None if run_dir is None else stack.enter_context(open_run(run_dir, identity())),
            share=False,
        )
        kept = {"folder": folder, "progress": progress and is_first()}
        return _evolved(evolution, checked_key(key), draws, **kept)[0]


def _evolved(
    evolution: Evolution, key: jax.Array, draws: int, **options: Any
) -> tuple[Evolved, list[Row]]:
    """What an evolution comes to, and the rows of what was measured."""
    state, (rows, measured) = fit(evolution, key, **options)
    solution, fitness = evolution.best(state, run_keys(key)[2], draws)
    history = {name: x for name, x in _columns(rows).items() if name != "generation"}
    return Evolved(solution, fitness, history), measured


def _columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as arrays by name, NaN where a row has no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.asarray([row.get(name) for row in rows], np.float64) for name in names}


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """The result of `pretrain`.

    Attributes:
      loss: the winner, calibrated and frozen.
      history: as of `evolve`, with the best network's `task_error` where tasks have a weight.
      held_out: by name, one value for each chunk of generations, `[chunks]` float64: `generation`,
        its last, and the metrics of the best on held-out pairs (NaN where undefined).
      metrics: of the winner on held-out pairs that nothing was chosen on, by name: of its ranking
        before its calibration, of its gradients after it.
    """

    loss: EvolvedLoss
    history: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    metrics: dict[str, float]


def pretrain(
    config: PretrainConfig | None = None,
    *,
    strategy: EvolutionaryAlgorithm | None = None,
    problem: Problem | None = None,
    key: jax.Array | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> PretrainResult:
    """Evolve a loss on synthetic pairs and freeze it.

    The same key on the same devices gives the same loss, bit for bit, on the CPU; another number of
    devices gives the same one up to rounding. Several processes all call this alike.

    Args:
      config: how to evolve; the defaults if None.
      strategy: an evosax algorithm of your own, instead of the one that the configuration names.
      problem: an evosax problem of your own, whose solutions are the configuration's loss networks,
        such as `0.7 * RankingProblem(config) + 0.3 * TaskProblem(config)`.
      key: a key from `jax.random.key`; by default from `config.seed`.
      run_dir: where to keep configuration, metrics, checkpoints and the loss; a run that was
        stopped there resumes from its last checkpoint. Nothing is written by default.
      devices: some of `jax.devices()`, among which the population is divided; all by default.
      progress: whether to tell how far it is: by a bar on a terminal, by lines elsewhere.

    Raises:
      ConfigError: if the strategy or the devices cannot serve a population of that size.
      RunFolderError: if `run_dir` holds another run, is in use or damaged, or cannot be written.
      Preempted: on SIGTERM, after the chunk of generations under way is saved; only with `run_dir`.
      ProcessError: if another process of the run is gone, or was given something else to do.
      EDLError: if every network of a generation fails.
    """
    config = config_or_default(config, PretrainConfig)
    check("strategy (by name it is config.strategy)", strategy, EvolutionaryAlgorithm | None)
    check("problem", problem, Problem | None)
    key = jax.random.key(config.seed) if key is None else checked_key(key)
    mesh = device_mesh(POPULATION, devices)
    identity: dict[str, Any] = {"pretrain": config, "key": jax.random.key_data(key).tolist()}
    given = {"strategy": strategy, "problem": problem}
    given = {kind: describe(part) for kind, part in given.items() if part is not None}
    if parts := own_parts(config) | given:
        identity["parts"] = parts
    devices_used = [device.id for device in mesh.devices.flat]
    agree(lambda: {**identity, "pretrain": as_json(config), "devices": devices_used})
    ranking, params = RankingProblem(config), None
    if strategy is None:
        strategy, params = build_strategy(config, ranking.sample)
    _, _, key_choice, key_measurement, _ = run_keys(key)
    evolution = Evolution(
        problem or problem_of(ranking),
        strategy,
        params,
        generations=config.generations,
        chunk=config.generations_per_chunk,
        mesh=mesh,
        watch=lambda solution: _measured(ranking, ranking.loss(solution), watched.result()),
    )
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: None if run_dir is None else stack.enter_context(open_run(run_dir, identity)),
            share=False,
        )
        # XLA compiles a program on one core: those that measure beside that of the generations.
        beside = stack.enter_context(ThreadPoolExecutor(1))
        watched = beside.submit(_watched, ranking, key_measurement)
        evolved, measured = _evolved(
            evolution,
            key,
            # As many fresh pairs as the winner is measured on.
            -(-config.held_out_pairs // config.pairs_per_generation),
            folder=folder,
            progress=progress and is_first(),
        )
        loss = ranking.loss(evolved.solution, key_choice)
        metrics = _metrics(ranking, loss, key_measurement)
        loss = loss.replace(provenance=Provenance(as_json(config), metrics, versions()))
        if folder is not None:
            folder.write_json("results.json", metrics)
            with writing("loss.safetensors", folder.path):
                loss.save(folder.path / "loss.safetensors")
    return PretrainResult(loss, evolved.history, _columns(measured), metrics)


def _watched(ranking: RankingProblem, key: jax.Array) -> tuple[Pairs, ...]:
    """Pairs to measure on, once a network of zeros was: what measures is compiled then."""
    pairs, shapes = ranking.pairs(key), ranking.config.architecture().abstract()[1]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    _measured(ranking, ranking.loss(zeros), pairs)
    return pairs


def _metrics(ranking: RankingProblem, loss: EvolvedLoss, key: jax.Array) -> Row:
    """Ranking over all class counts together; ranking and gradient for each."""
    sets, config = ranking.held_out_pairs(key), ranking.config
    metrics, of_gradient = _measured(ranking, loss, sets), ("descent_rate", "gradient_ratio")
    metrics = {name: x for name, x in metrics.items() if not name.startswith(of_gradient)}
    for index, num_classes in enumerate(config.class_counts):
        found = _measured(ranking, loss, sets[index :: len(config.class_counts)])
        metrics |= {f"{num_classes} classes: {name}": value for name, value in found.items()}
    return metrics | (_errors_on_tasks(loss, config, key) if config.task_weight else {})


def _errors_on_tasks(loss: EvolvedLoss, config: PretrainConfig, key: jax.Array) -> dict[str, float]:
    """Errors on fresh tasks, the loss's and cross-entropy's, each at its best learning rate."""
    network, cross_entropy = loss.network(), SEVERITIES["surprisal"]

    @jax.jit
    def errors(key: jax.Array) -> list[jax.Array]:
        tasks = draw_tasks(key, config.tasks, config.mixture)
        return [task_errors(x, tasks, config.tasks) for x in (network, cross_entropy)]

    keys = jax.random.split(jax.random.fold_in(key, TASKS), 8)
    found = np.asarray([errors(key) for key in keys])  # draws, losses, rates, tasks
    mine, reference = found.mean(axis=(0, 3)).min(axis=-1)
    return {"task_error": float(mine), "task_error_of_cross_entropy": float(reference)}


def _measured(ranking: RankingProblem, loss: EvolvedLoss, pairs: Sequence[Pairs]) -> Row:
    """Ranking as before calibration, gradients as after it."""
    plain, name = loss.replace(scale=np.float32(1)), ranking.config.severity
    kinds = {"severity": ranking.severity, "margin": ranking.margin}
    found = measure(plain, pairs, scale=loss.scale, **kinds)
    if found and "violated_margins" not in found:
        raise ConfigError(f"severity is {name!r}, equal for all pairs; expected one that ranks.")
    return found
