"""The host's side of a run: chunks of generations, and a report between two of them."""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from edl_jax.errors import EDLError, Preempted
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.engine import Evolution, Log, State
from edl_jax.runs.checkpoints import Checkpoints, open_checkpoints
from edl_jax.runs.devices import on_every_device, to_every_device
from edl_jax.runs.exchange import in_any, others_needed
from edl_jax.runs.folder import RunFolder, as_finite
from edl_jax.runs.preemption import sigterm_noticed
from edl_jax.runs.processes import first_does
from edl_jax.runs.resuming import RowLog, resume
from edl_jax.runs.tensorboard import Write, open_events

Row = dict[str, Any]
HELD_OUT_FILE = "held_out.jsonl"


class Evolved(NamedTuple):
    """What a run has come to.

    Attributes:
      state: the last state, on the host.
      rows: metrics of each generation.
      held_out: metrics of the leader on held-out pairs after each chunk of generations.
    """

    state: State
    rows: list[Row]
    held_out: list[Row]


def evolve(
    config: PretrainConfig,
    evolution: Evolution,
    mesh: Mesh,
    keys: tuple[jax.Array, jax.Array],
    monitor: Callable[[nnx.State], dict[str, float]],
    *,
    folder: RunFolder | None = None,
    progress: bool = False,
) -> Evolved:
    """Run all generations, in chunks that stay on the devices.

    Args:
      config: the run's configuration.
      evolution: its functions, made for as many shards as the mesh has devices.
      mesh: the devices, of this process or of several.
      keys: keys of the initial state and of the generations.
      monitor: gives metrics of a network on held-out pairs.
      folder: where metrics and checkpoints go; what is found there is taken up. Of several
        processes, the first alone has one.
      progress: whether to show a progress bar.

    Raises:
      EDLError: if every network of a generation fails.
      Preempted: on SIGTERM, after saving; only with a folder.
      ProcessError: if another process is gone.
      RunFolderError: if the folder is damaged, or cannot be written.
    """
    key_init, key_generations = keys
    with contextlib.ExitStack() as stack:
        stack.enter_context(others_needed())
        has_folder = in_any(folder is not None)
        checkpoints = first_does(
            partial(open_checkpoints, folder, config.keep_checkpoints), share=False
        )
        if checkpoints is not None:
            stack.enter_context(checkpoints)
        terminated = stack.enter_context(sigterm_noticed()) if has_folder else lambda: False
        start = jax.device_get(jax.jit(evolution.init)(key_init))
        (first, rows, held_out), state = first_does(
            partial(_taken_up, start, folder, checkpoints, config.generations_per_chunk),
            like=start,
        )
        state = to_every_device(state, mesh)
        write = first_does(partial(open_events, stack, folder, first), share=False)
        chunk = make_chunk(config.generations_per_chunk, evolution, mesh)
        candidates = jax.jit(evolution.candidates)
        bar = stack.enter_context(
            tqdm(
                total=config.generations,
                initial=first,
                unit="gen",
                desc="evolve",
                disable=not progress,
            )
        )
        while first < config.generations:
            done = min(first + config.generations_per_chunk, config.generations)
            state, log = chunk(key_generations, state, jnp.int32(first), jnp.int32(done))
            log, host = jax.device_get((log, state))
            new = _rows(log, first, done)
            _check_alive(new, config)
            leader = jax.tree.map(lambda x: x[0], candidates(host))
            watched = {"generation": done - 1, **monitor(leader)}
            rows, held_out = rows + new, [*held_out, watched]
            first_does(partial(_save, folder, checkpoints, write, done, host, new, watched))
            bar.update(done - first)
            bar.set_postfix_str(f"best fitness {new[-1]['best_fitness']:.3g}")
            first = done
            if has_folder and in_any(terminated()):
                raise Preempted(
                    f"told to stop by SIGTERM after generation {first} of {config.generations}; "
                    "everything is saved. Give the same command again to resume."
                )
    return Evolved(jax.device_get(state), rows, held_out)


def make_chunk(
    length: int, evolution: Evolution, mesh: Mesh
) -> Callable[[jax.Array, State, jax.Array, jax.Array], tuple[State, Log]]:
    """`(key, state, first, end) -> (state, log)`: generations `first` to `end - 1`, compiled.

    The state's buffers are donated. A chunk has `length` generations; those from `end` on are
    skipped, so that one program serves every chunk, and runs of any number of generations but where
    a schedule of the step size depends on it. Each entry of the log is `[length]`.
    """

    def chunk(key: jax.Array, state: State, first: jax.Array, end: jax.Array) -> tuple[State, Log]:
        def step(state: State, index: jax.Array) -> tuple[State, Log]:
            return evolution.generation(jax.random.fold_in(key, index), state)

        def skip(state: State, index: jax.Array) -> tuple[State, Log]:
            shapes = jax.eval_shape(step, state, index)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(state: State, index: jax.Array) -> tuple[State, Log]:
            return jax.lax.cond(index < end, step, skip, state, index)

        return jax.lax.scan(body, state, first + jnp.arange(length))

    return on_every_device(chunk, mesh, donate_argnums=(1,))


def _taken_up(
    start: State, folder: RunFolder | None, checkpoints: Checkpoints | None, per_chunk: int
) -> tuple[tuple[int, list[Row], list[Row]], State]:
    """How many generations a folder has of the run, their rows, and what they have come to."""
    if folder is None or checkpoints is None:
        return (0, [], []), start

    def ends(step: int) -> list[int]:
        """The last generation of each chunk."""
        return [min(end, step) - 1 for end in range(per_chunk, step + per_chunk, per_chunk)]

    logs = (
        RowLog("metrics.jsonl", "generation", lambda step: list(range(step))),
        RowLog(HELD_OUT_FILE, "generation", ends),
    )
    first, state, (rows, held_out) = resume(folder, checkpoints, start, logs, per_chunk)
    return (first, rows, held_out), state


def _save(
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    write: Write | None,
    done: int,
    state: State,
    rows: list[Row],
    watched: Row,
) -> None:
    if folder is None or checkpoints is None or write is None:
        return
    folder.append_rows(as_finite(row) for row in rows)
    folder.append_rows([as_finite(watched)], HELD_OUT_FILE)
    for row in rows:
        write(row["generation"], row)
    measured = {f"held_out/{x}": value for x, value in watched.items() if x != "generation"}
    write(watched["generation"], measured)
    checkpoints.save(done, state, score=watched.get("pairwise_accuracy", 0.0))


def _rows(log: dict[str, np.ndarray], first: int, done: int) -> list[Row]:
    return [
        {
            "generation": index,
            **{name: float(values[index - first]) for name, values in log.items()},
        }
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
