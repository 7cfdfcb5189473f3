"""An evolution as a run that `fit` drives: chunks of generations that stay on the devices."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from edl_jax.errors import EDLError
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.engine import Evolution, Log, State
from edl_jax.runs.devices import on_every_device, to_every_device
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import METRICS, Row, RowLog, RunFolder

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


class Generations(NamedTuple):
    """How far an evolution is.

    Attributes:
      done: how many generations are, int32 scalar.
      state: what they have come to.
    """

    done: Any
    state: State


class EvolutionRun:
    """A run of generations; see `edl_jax.runs.fit.Run`."""

    name, unit = "evolve", "generation"

    def __init__(
        self,
        config: PretrainConfig,
        evolution: Evolution,
        mesh: Mesh,
        key: jax.Array,
        monitor: Callable[[nnx.State], dict[str, float]],
    ):
        """Prepare a run; `key` is that of the generations."""
        self.total, self.mesh = config.generations, mesh
        self.period = self.chunk = chunk = config.generations_per_chunk
        self.logs: tuple[RowLog, ...] = (
            RowLog(METRICS, "generation", lambda step: list(range(step))),
            RowLog(
                HELD_OUT_FILE,
                "generation",
                lambda step: [min(end, step) - 1 for end in range(chunk, step + chunk, chunk)],
            ),
        )
        self._config, self._evolution, self._key, self._monitor = config, evolution, key, monitor
        self._advance = make_chunk(chunk, evolution, mesh)
        self._candidates = jax.jit(evolution.candidates)

    def init(self, key: jax.Array) -> Generations:
        """No generation is done yet."""
        state = jax.device_get(jax.jit(self._evolution.init)(key))
        return to_every_device(Generations(np.int32(0), state), self.mesh)

    def advance(self, state: Generations, n: int) -> tuple[Generations, list[Row]]:
        """Run `n` generations.

        Raises:
          EDLError: if every network of one fails.
        """
        first = int(state.done)
        new, log = self._advance(self._key, state.state, jnp.int32(first), jnp.int32(first + n))
        columns = jax.device_get(log).items()
        rows = [
            {"generation": first + i, **{name: float(column[i]) for name, column in columns}}
            for i in range(n)
        ]
        _check_alive(rows, self._config)
        return Generations(to_every_device(np.int32(first + n), self.mesh), new), rows

    def measure(self, state: Generations) -> Row:
        """Measure the leader on held-out pairs."""
        candidates = self._candidates(jax.device_get(state.state))
        leader = jax.tree.map(lambda x: x[0], candidates)
        return {"generation": int(state.done) - 1, **self._monitor(leader)}

    def score(self, row: Row) -> float:
        """The best leader ranks best."""
        return row.get("pairwise_accuracy", 0.0)

    def summary(self, row: Row) -> str:
        """The best fitness."""
        return f"best fitness {row['best_fitness']:.3g}"


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
      folder: as of `fit`.
      progress: as of `fit`.

    Raises:
      EDLError: if every network of a generation fails.
      Preempted, ProcessError, RunFolderError: as `fit`.
    """
    run = EvolutionRun(config, evolution, mesh, keys[1], monitor)
    found = fit(run, keys[0], folder=folder, keep=config.keep_checkpoints, progress=progress)
    return Evolved(jax.device_get(found.state.state), *found.rows)


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


def _check_alive(rows: list[Row], config: PretrainConfig) -> None:
    for row in rows:
        if row["failed"] >= config.population_size or not math.isfinite(row["best_fitness"]):
            raise EDLError(
                f"all {config.population_size} networks of generation {row['generation']} failed "
                f"(fitness not finite; step size {row['step_size']:.3g}). Lower std_init, or use "
                "another severity or margin."
            )
