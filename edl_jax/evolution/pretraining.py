"""Evolve a loss, choose the winner, freeze it: stages 1 to 6 in one call."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from edl_jax.evolution import PretrainConfig, make_evolution, run_keys
from edl_jax.evolution.engine import FINAL_DRAWS, HELD_OUT, TASKS, Evolution
from edl_jax.evolution.loop import Row, evolve
from edl_jax.evolution.monitor import make_monitor
from edl_jax.evolution.scoring import Batch
from edl_jax.evolution.sharding import AXIS
from edl_jax.losses import EvolvedLoss, Provenance, calibrated
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    draw_tasks,
    gradient_metrics,
    logit_gradients,
    rank_metrics,
    task_errors,
)
from edl_jax.pairs import Pairs
from edl_jax.registry import Registry
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.environment import versions
from edl_jax.runs.folder import RunFolder, as_json, open_run, writing
from edl_jax.runs.processes import agree, first_does, is_first
from edl_jax.strategies import MUTATIONS, STRATEGIES
from edl_jax.validation import checked_key, config_or_default

_PARTS: dict[str, Registry[Any]] = {
    "severity": SEVERITIES,
    "margin": MARGINS,
    "mutation": MUTATIONS,
    "strategy": STRATEGIES,
}


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` gives.

    Attributes:
      loss: the winner, calibrated and frozen.
      history: by name, one value for each generation, `[generations]` float64: `best_fitness`,
        `mean_fitness`, `step_size` (NaN where the strategy has none), `failed` (networks whose
        fitness was not finite) and `restarts` so far; and the best network's `task_error` and
        `slope_violation`, where these have a weight.
      held_out: by name, one value for each chunk of generations, `[chunks]` float64: `generation`,
        its last, and the metrics of the leader on held-out pairs (NaN where undefined).
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
    key: jax.Array | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> PretrainResult:
    """Evolve a loss on synthetic pairs and freeze it.

    The same key gives the same loss, bit for bit, on the CPU, whatever the number of devices or of
    processes. Several processes (see docs/scale.md) all call this alike.

    Args:
      config: how to evolve; the defaults unless given.
      key: a key from `jax.random.key`; from `config.seed` unless given.
      run_dir: where to keep configuration, metrics, checkpoints and the loss; a run that was
        stopped there resumes from its last checkpoint. Nothing is written unless given. Of several
        processes the first alone writes.
      devices: some of `jax.devices()`, among which the population is divided; all, of all
        processes, unless given.
      progress: whether to show a progress bar.

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
    if parts := own_parts(config):
        identity["parts"] = parts
    agree(lambda: {**identity, "devices": [device.id for device in mesh.devices.flat]})
    evolution = make_evolution(config, shards=mesh.size)
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: None if run_dir is None else stack.enter_context(open_run(run_dir, identity)),
            share=False,
        )
        return _evolved(config, key, mesh, evolution, folder, progress and is_first())


def own_parts(*configs: PretrainConfig) -> dict[str, str]:
    """What tells the users' own parts that configurations name from others of the same names."""
    return {
        f"{kind} {name}": describe(registry[name])
        for config in configs
        for kind, registry in _PARTS.items()
        if not registry.is_protected(name := getattr(config, kind))
    }


def _evolved(
    config: PretrainConfig,
    key: jax.Array,
    mesh: Mesh,
    evolution: Evolution,
    folder: RunFolder | None,
    progress: bool,
) -> PretrainResult:
    """Run all generations, choose the winner and measure it."""
    key_init, key_generations, key_choice, key_measurement = run_keys(key)
    state, rows, held_out = evolve(
        config,
        evolution,
        mesh,
        (key_init, key_generations),
        make_monitor(config, evolution, key_measurement),
        folder=folder,
        progress=progress,
    )

    # Best-ever fitness is optimistic: it keeps the luckiest draw of pairs. So the winner is the
    # last candidate that scores best on many fresh pairs, and it is measured on others.
    sample, observe = jax.jit(evolution.sample), jax.jit(evolution.observe)
    pairs = held_out_pairs(sample, key_choice, config)
    candidates = evolution.candidates(state)
    batch = observe(key_choice, pairs)
    winner = jnp.argmin(jax.jit(evolution.final_score)(candidates, batch, key_choice))
    loss = EvolvedLoss(
        params=nnx.to_pure_dict(jax.tree.map(lambda x: x[winner], candidates)),
        scale=jnp.ones((), jnp.float32),
        architecture=config.architecture(),
    )
    loss = calibrated(loss, pairs)
    metrics = _measure(loss, observe, held_out_pairs(sample, key_measurement, config), config)
    if config.task_weight:
        metrics |= _measure_on_tasks(loss, key_measurement, config)
    loss = loss.replace(provenance=Provenance(as_json(config), metrics, versions()))

    if folder is not None:
        folder.write_json("results.json", metrics)
        with writing("loss.safetensors", folder.path):
            loss.save(folder.path / "loss.safetensors")
    return PretrainResult(loss, _columns(rows, {"generation"}), _columns(held_out), metrics)


def _columns(rows: Sequence[Row], left_out: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Rows as arrays by name, NaN where a row has no value."""
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in left_out]
    return {name: np.asarray([row.get(name) for row in rows], np.float64) for name in names}


def held_out_pairs(
    sample: Callable[[jax.Array], tuple[Pairs, ...]], key: jax.Array, config: PretrainConfig
) -> tuple[Pairs, ...]:
    """At least `held_out_pairs` pairs, drawn a generation's worth at a time by one program."""
    draws = -(-config.held_out_pairs // config.pairs_per_generation)
    key = jax.random.fold_in(key, HELD_OUT)
    parts = [sample(jax.random.fold_in(key, index)) for index in range(draws)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _measure(
    loss: EvolvedLoss,
    observe: Callable[[jax.Array, tuple[Pairs, ...]], Batch],
    pairs_of_counts: tuple[Pairs, ...],
    config: PretrainConfig,
) -> dict[str, float]:
    """Ranking over all class counts together; ranking and gradient for each by itself."""
    severity, margin = SEVERITIES[config.severity], MARGINS[config.margin]
    batch = observe(jax.random.key(0), pairs_of_counts)
    losses = loss.network().from_features(batch.features)
    gradients = jax.jit(lambda pairs: logit_gradients(loss, pairs, severity))
    metrics = rank_metrics(losses, batch.severities, batch.regimes, margin=margin)
    for pairs in pairs_of_counts:
        num_classes = pairs.probabilities.shape[-1]
        mine = np.asarray(batch.class_counts) == num_classes
        parts = {
            **rank_metrics(
                losses[mine], batch.severities[mine], batch.regimes[mine], margin=margin
            ),
            **gradient_metrics(gradients(pairs)),
        }
        metrics |= {f"{num_classes} classes: {name}": value for name, value in parts.items()}
    return metrics


def _measure_on_tasks(
    loss: EvolvedLoss, key: jax.Array, config: PretrainConfig
) -> dict[str, float]:
    """Error on fresh tasks beside cross-entropy's, each at its own best learning rate."""
    network = loss.network()

    cross_entropy = SEVERITIES["surprisal"]

    @jax.jit
    def errors(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        tasks = draw_tasks(key, config.tasks, config.mixture)
        mine, reference = (task_errors(x, tasks, config.tasks) for x in (network, cross_entropy))
        return mine, reference

    keys = jax.random.split(jax.random.fold_in(key, TASKS), FINAL_DRAWS)
    found = [errors(each) for each in keys]
    mine, reference = (np.mean(column, axis=(0, 2)).min() for column in zip(*found, strict=True))
    return {"task_error": float(mine), "task_error_of_cross_entropy": float(reference)}
