"""The host's side of a run: chunks of generations, and a report between two of them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from edl_jax.errors import EDLError, RunFolderError
from edl_jax.evolution.checkpoint import Checkpoints
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.engine import Batch, Evolution, Log
from edl_jax.ranking import rank_metrics
from edl_jax.runs import RunFolder
from edl_jax.strategy.chaotic_es import State

Row = dict[str, Any]


def evolve(
    config: PretrainConfig,
    evolution: Evolution,
    key: jax.Array,
    state: State,
    monitor: Batch,
    *,
    folder: RunFolder | None = None,
    progress: bool = False,
) -> tuple[State, list[Row]]:
    """Run all generations, in chunks that stay on the device.

    Args:
      config: the run's configuration.
      evolution: its functions.
      key: key of the generations.
      state: the initial state; its buffers are donated.
      monitor: held-out pairs on which the leader is watched between chunks.
      folder: where metrics and checkpoints go; a checkpoint found there is taken up.
      progress: whether to show a progress bar.

    Returns:
      The last state, and a row of metrics for each generation.

    Raises:
      EDLError: if every network of a generation fails.
    """
    if folder is None:
        return _run_chunks(config, evolution, key, state, monitor, None, None, progress)
    with Checkpoints(folder.path / "checkpoints") as checkpoints:
        return _run_chunks(config, evolution, key, state, monitor, folder, checkpoints, progress)


def make_chunk(
    config: PretrainConfig, evolution: Evolution
) -> Callable[[jax.Array, State, jax.Array], tuple[State, Log]]:
    """`(key, state, first) -> (state, log)`: a chunk of generations from number `first`, compiled.

    Its length is `generations_per_chunk`; generations past the last are skipped, so that one
    program serves every chunk. Each entry of the log is `[generations_per_chunk]`.
    """

    def chunk(key: jax.Array, state: State, first: jax.Array) -> tuple[State, Log]:
        def step(state: State, index: jax.Array) -> tuple[State, Log]:
            return evolution.generation(jax.random.fold_in(key, index), state)

        def skip(state: State, index: jax.Array) -> tuple[State, Log]:
            shapes = jax.eval_shape(step, state, index)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(state: State, index: jax.Array) -> tuple[State, Log]:
            return jax.lax.cond(index < config.generations, step, skip, state, index)

        return jax.lax.scan(body, state, first + jnp.arange(config.generations_per_chunk))

    return jax.jit(chunk, donate_argnums=1)


def _run_chunks(
    config: PretrainConfig,
    evolution: Evolution,
    key: jax.Array,
    state: State,
    monitor: Batch,
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    progress: bool,
) -> tuple[State, list[Row]]:
    first, rows = 0, []
    if folder is not None and checkpoints is not None:
        first, state = checkpoints.restore_latest(state)
        # What was logged after the checkpoint is run, and logged, again.
        rows = folder.read_rows()[:first]
        if len(rows) < first:
            raise RunFolderError(
                f"{folder.path} has a checkpoint of generation {first} but metrics of only "
                f"{len(rows)} generations; metrics.jsonl is damaged. Remove the run folder."
            )
        folder.replace_rows(rows)
    chunk = make_chunk(config, evolution)
    watch = jax.jit(_leader_losses, static_argnums=0)
    with tqdm(
        total=config.generations, initial=first, unit="gen", desc="evolve", disable=not progress
    ) as bar:
        while first < config.generations:
            state, log = chunk(key, state, jnp.int32(first))
            leader = watch(evolution, state, monitor)
            done = min(first + config.generations_per_chunk, config.generations)
            new = _rows(jax.device_get(log), first, done)
            accuracy = rank_metrics(leader, monitor.severities, monitor.regimes)
            new[-1]["held_out_accuracy"] = accuracy.get("pairwise_accuracy")
            _check_alive(new, config)
            rows += new
            if folder is not None and checkpoints is not None:
                folder.append_rows(new)
                checkpoints.save(done, state)
            bar.update(done - first)
            bar.set_postfix_str(f"best fitness {new[-1]['best_fitness']:.3g}")
            first = done
    return state, rows


def _leader_losses(evolution: Evolution, state: State, monitor: Batch) -> jax.Array:
    leader = jax.tree.map(lambda x: x[0], evolution.elites(state))
    return nnx.merge(evolution.graphdef, leader).from_features(monitor.features)


def _rows(log: dict[str, np.ndarray], first: int, done: int) -> list[Row]:
    return [
        {
            "generation": index,
            **{name: float(values[index - first]) for name, values in log.items()},
        }
        | {"held_out_accuracy": None}
        for index in range(first, done)
    ]


def _check_alive(rows: list[Row], config: PretrainConfig) -> None:
    for row in rows:
        if row["failed"] >= config.population_size or not math.isfinite(row["best_fitness"]):
            raise EDLError(
                f"all {config.population_size} networks of generation {row['generation']} failed "
                f"(fitness not finite; step size {row['step_size']:.3g}). Lower std_init, or use "
                "another severity or margin."
            )
