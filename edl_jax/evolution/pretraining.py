"""Evolve a loss, choose the winner, freeze it: the whole method but training, in one call."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.problems import Problem
from evosax.types import Solution

from edl_jax.checked import checked_key, config_or_default
from edl_jax.evolution.config import PretrainConfig, own_parts
from edl_jax.evolution.evolve import columns, run_keys
from edl_jax.evolution.loss_problem import TASKS
from edl_jax.evolution.problems import RankingProblem, problem_of
from edl_jax.evolution.run import AXIS, Evolution
from edl_jax.losses import EvolvedLoss, Provenance
from edl_jax.objective import MARGINS, SEVERITIES, draw_tasks, measure, task_errors
from edl_jax.pairs import Pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.environment import versions
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import as_json, open_run, writing
from edl_jax.runs.processes import agree, first_does, is_first
from edl_jax.strategies import build_strategy

_TASK_DRAWS = 8  # of the tasks on which the winner is measured


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` gives.

    Attributes:
      loss: the winner, calibrated and frozen.
      history: by name, one value for each generation, `[generations]` float64: `best_fitness`,
        `mean_fitness`, `step_size` (NaN where the strategy has none) and `failed` (networks whose
        fitness was not finite); and the best network's `task_error` and `slope_violation`, where
        these have a weight.
      held_out: by name, one value for each chunk of generations, `[chunks]` float64: `generation`,
        its last, and the metrics of the best on held-out pairs (NaN where undefined).
      metrics: of the winner on held-out pairs that nothing was chosen on, by name: those of
        `rank_metrics` before its calibration, which changes `violated_margins` alone; those of
        `gradient_metrics` after it.
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
    devices gives the same one up to rounding. Several processes (see docs/scale.md) all call this
    alike.

    Args:
      config: how to evolve; the defaults if None.
      strategy: an evosax algorithm of your own, with its default parameters; the one that the
        configuration names by default.
      problem: an evosax problem of your own, whose solutions are the configuration's loss networks,
        such as `0.7 * RankingProblem(config) + 0.3 * TaskProblem(config)`; what the configuration
        asks for by default.
      key: a key from `jax.random.key`; by default from `config.seed`.
      run_dir: where to keep configuration, metrics, checkpoints and the loss; a run that was
        stopped there resumes from its last checkpoint. Nothing is written by default. Of several
        processes the first alone writes.
      devices: some of `jax.devices()`, among which the population is divided; all, of all
        processes, by default.
      progress: whether to tell how far it is: by a bar on a terminal, by lines elsewhere.

    Raises:
      ConfigError: if the strategy refuses the configuration, the devices cannot share the
        population equally, or nothing is ranked, as with a constant severity.
      RunFolderError: if `run_dir` holds a run with another configuration or key, is in use by
        another run, is damaged, or cannot be read or written.
      Preempted: on SIGTERM, after the chunk of generations under way is saved; only with `run_dir`.
      ProcessError: if another process of the run is gone, or was given something else to do.
      InputError: if `key` is no key of `jax.random.key`.
      EDLError: if every network of a generation fails.
    """
    config = config_or_default(config, PretrainConfig)
    key = jax.random.key(config.seed) if key is None else checked_key(key)
    mesh = device_mesh(AXIS, devices)
    identity = {"pretrain": as_json(config), "key": jax.random.key_data(key).tolist()}
    given = {"strategy": strategy, "problem": problem}
    parts = {kind: describe(part) for kind, part in given.items() if part is not None}
    if parts := own_parts(config) | parts:
        identity["parts"] = parts
    agree(lambda: {**identity, "devices": [device.id for device in mesh.devices.flat]})
    ranking, params = RankingProblem(config), None
    if strategy is None:
        strategy, params = build_strategy(config, ranking.sample)
    problem = problem_of(config) if problem is None else problem
    _, _, key_choice, key_measurement = run_keys(key)
    if problem == ranking:  # then nothing else is asked for
        ranking.check(key_measurement)
    watched = ranking.pairs(key_measurement)
    evolution = Evolution(
        problem,
        strategy,
        params,
        generations=config.generations,
        chunk=config.generations_per_chunk,
        mesh=mesh,
        watch=lambda solution: _measured(ranking.loss(solution), watched, config),
    )
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: None if run_dir is None else stack.enter_context(open_run(run_dir, identity)),
            share=False,
        )
        found = fit(
            evolution,
            key,
            folder=folder,
            keep=config.keep_checkpoints,
            progress=progress and is_first(),
        )
        rows, held_out = found.rows
        # As many fresh pairs as the winner is measured on.
        draws = -(-config.held_out_pairs // config.pairs_per_generation)
        winner, _ = evolution.best(found.state, key_choice, draws)
        loss, metrics = _frozen(ranking, winner, key_choice, key_measurement)
        if folder is not None:
            folder.write_json("results.json", metrics)
            with writing("loss.safetensors", folder.path):
                loss.save(folder.path / "loss.safetensors")
    history = columns(rows)
    del history["generation"]
    return PretrainResult(loss, history, columns(held_out), metrics)


def _frozen(
    ranking: RankingProblem, winner: Solution, key_choice: jax.Array, key_measurement: jax.Array
) -> tuple[EvolvedLoss, dict[str, float]]:
    """The winner, frozen and calibrated, and its metrics on pairs that nothing was chosen on.

    Ranking over all class counts together; ranking and gradient for each by itself.
    """
    config, loss = ranking.config, ranking.loss(winner, key_choice)
    sets = ranking.held_out_pairs(key_measurement)
    together = _measured(loss, sets, config)
    metrics = {
        name: value
        for name, value in together.items()
        if not name.startswith(("descent_rate", "gradient_ratio"))
    }
    for pairs in sets:
        found = _measured(loss, (pairs,), config)
        num_classes = pairs.probabilities.shape[-1]
        metrics |= {f"{num_classes} classes: {name}": value for name, value in found.items()}
    if config.task_weight:
        metrics |= _measured_on_tasks(loss, config, key_measurement)
    return loss.replace(provenance=Provenance(as_json(config), metrics, versions())), metrics


def _measured(
    loss: EvolvedLoss, pairs: Sequence[Pairs], config: PretrainConfig
) -> dict[str, float]:
    """Ranking as before calibration, gradients as after it."""
    return measure(
        loss.replace(scale=np.float32(1)),
        pairs,
        severity=SEVERITIES[config.severity],
        margin=MARGINS[config.margin],
        scale=loss.scale,
    )


def _measured_on_tasks(
    loss: EvolvedLoss, config: PretrainConfig, key: jax.Array
) -> dict[str, float]:
    """Error on fresh tasks beside cross-entropy's, each at its own best learning rate."""
    network, cross_entropy = loss.network(), SEVERITIES["surprisal"]

    @jax.jit
    def errors(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        tasks = draw_tasks(key, config.tasks, config.mixture)
        mine, reference = (task_errors(x, tasks, config.tasks) for x in (network, cross_entropy))
        return mine, reference

    keys = jax.random.split(jax.random.fold_in(key, TASKS), _TASK_DRAWS)
    found = [errors(each) for each in keys]
    mine, reference = (np.mean(column, axis=(0, 2)).min() for column in zip(*found, strict=True))
    return {"task_error": float(mine), "task_error_of_cross_entropy": float(reference)}
