"""Evolve a loss on synthetic pairs, choose the winner, calibrate and freeze it."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.problems import Problem

from edl_jax.checked import check, checked_key, config_or_default
from edl_jax.errors import ConfigError
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.evolve import columns, run_evolution
from edl_jax.evolution.problems import TASKS, RankingProblem, problem_of
from edl_jax.evolution.run import POPULATION, Evolution, run_keys
from edl_jax.losses import EvolvedLoss, Provenance
from edl_jax.objective import SEVERITIES, draw_tasks, measure, task_errors
from edl_jax.pairs import Pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.environment import versions
from edl_jax.runs.folder import Row, as_json, open_run, own_parts, writing
from edl_jax.runs.processes import agree, first_does, is_first
from edl_jax.strategies import build_strategy


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
        evolved, measured = run_evolution(
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
    return PretrainResult(loss, evolved.history, columns(measured), metrics)


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
