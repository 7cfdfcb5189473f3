"""Evolve the solutions of any evosax problem with any evosax strategy, on one device or several.

Every device runs the whole generation on its own copy of the small state, with the same keys. Only
the costly part is divided: each scores its share, and fitness is all that crosses between them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.problems import Problem
from evosax.types import Fitness, Population, Solution
from flax import struct
from jax.sharding import Mesh

from edl_jax.errors import EDLError
from edl_jax.evolution.search import Search, without_failures
from edl_jax.runs.devices import check_share, device_mesh, on_every_device, to_every_device
from edl_jax.runs.folder import METRICS, Row

POPULATION = "pop"


def run_keys(key: jax.Array) -> jax.Array:
    """Keys of a run: first population, generations, choice, measurement, the problem's state."""
    return jax.random.split(key, 5)


@struct.dataclass
class State:
    """State of an evolution."""

    key: jax.Array  # data of the key of all generations; each has `fold_in(key, index)`
    generation: jax.Array  # generations done, an int32 scalar
    strategy: Any
    problem: Any
    population: Population  # the solutions scored last, `[population_size, ...]`
    fitness: Fitness  # theirs, `[population_size]` float32, lower is better
    impl: Any = struct.field(pytree_node=False)  # the kind of the key


class Evolution:
    """An evolution on a mesh of the axis "pop", which `fit` drives; `watch` measures its best."""

    name, unit, files = "evolve", "generation", (METRICS, "held_out.jsonl")

    def __init__(
        self,
        problem: Problem,
        strategy: EvolutionaryAlgorithm,
        params: Any = None,
        *,
        generations: int,
        chunk: int = 25,
        mesh: Mesh | None = None,
        watch: Callable[[Solution], Row] = lambda solution: {},
    ):
        params = strategy.default_params if params is None else params
        self.problem, self.search = problem, Search(strategy, params, problem.sample)
        self.population_size = self.search.population_size
        self.mesh = device_mesh(POPULATION) if mesh is None else mesh
        check_share(self.population_size, self.mesh.size)
        self.total, self.watch = generations, watch
        self.period = self.chunk = chunk
        self._advance = on_every_device(self._generations, self.mesh, donate_argnums=(0,))
        self._candidates = jax.jit(self.candidates)

    def begin(self, key: jax.Array) -> State:
        """The state before the first generation; pure."""
        key_init, key_run, _, _, key_problem = run_keys(key)
        with jax.numpy_rank_promotion("allow"):  # which evosax counts on
            strategy, population = self.search.init(key_init)
            problem = self.problem.init(key_problem)
        return State(
            key=jax.random.key_data(key_run),
            generation=jnp.zeros((), jnp.int32),
            strategy=jax.tree.map(_strong, strategy),
            problem=jax.tree.map(_strong, problem),
            population=population,
            fitness=jnp.full((self.population_size,), jnp.inf, jnp.float32),
            impl=jax.random.key_impl(key),
        )

    def generation(self, state: State) -> tuple[State, dict[str, jax.Array]]:
        """The state after a generation, and what it logs; pure, on each of the devices."""
        of_all = jax.random.wrap_key_data(state.key, impl=state.impl)
        key = jax.random.fold_in(of_all, state.generation)
        key_eval, key_ask, key_tell = jax.random.split(key, 3)
        is_first = state.generation == 0
        with jax.numpy_rank_promotion("allow"):
            population, asked = self.search.ask(key_ask, state.strategy, state.population, is_first)
            share = self._my_share(population)
            scored, problem, metrics = self.problem.eval(key_eval, share, state.problem)
            raw = self._of_all(scored)
            finite = jnp.isfinite(raw)
            population, fitness = without_failures(population, raw)
            after = self.search.tell(key_tell, population, fitness, asked, is_first)
        best = jnp.argmin(fitness)
        log = {
            "best_fitness": fitness[best],
            "mean_fitness": jnp.mean(raw, where=finite),
            "step_size": jnp.mean(jnp.asarray(getattr(after, "std", jnp.nan), jnp.float32)),
            "failed": jnp.sum(~finite, dtype=jnp.int32),
        }
        for name, values in metrics.items():
            if jnp.shape(values) == scored.shape:  # a value for each solution
                log[name] = self._of_all(values)[best]
        new = {"strategy": after, "problem": problem, "population": population, "fitness": fitness}
        return dataclasses.replace(state, generation=state.generation + 1, **new), log

    def init(self, key: jax.Array) -> State:
        """The state before the first generation, whole on every device."""
        return to_every_device(jax.device_get(jax.jit(self.begin)(key)), self.mesh)

    def advance(self, state: State, n: int) -> tuple[State, list[Row]]:
        """`n` generations more, at most a chunk. Donates the state."""
        state, log = self._advance(state, np.int32(n))
        log, done = jax.device_get((log, state.generation))
        rows = []
        for index in range(n):
            values = {name: float(column[index]) for name, column in log.items()}
            row = {"generation": int(done) - n + index, **values}
            if row["failed"] == self.population_size:
                raise EDLError(
                    f"all {self.population_size} solutions of generation {row['generation']} "
                    f"failed (fitness not finite; step size {row['step_size']:.3g}). Lower "
                    "strategy.std_init, or use another severity or margin."
                )
            rows.append(row)
        return state, rows

    def measure(self, state: State) -> Row:
        """What `watch` says of the best of the last generation."""
        candidates = self._candidates(jax.device_get(state))
        found = self.watch(jax.tree.map(lambda x: x[0], candidates))
        return {"generation": int(state.generation) - 1, **found}

    def summary(self, row: Row) -> str:
        """The best fitness."""
        return f"best fitness {row['best_fitness']:.3g}"

    def candidates(self, state: State) -> Population:
        """The best quarter of the last generation, best first, and what the strategy keeps."""
        best = jnp.argsort(state.fitness)[: max(1, self.population_size // 4)]
        kept = self.search.kept(state.strategy)
        return jax.tree.map(lambda x, y: jnp.concatenate([x[best], y]), state.population, kept)

    def best(self, state: State, key: jax.Array, draws: int) -> tuple[Solution, float]:
        """The candidate with the best mean fitness over fresh draws, and its mean."""
        # The best fitness that was ever seen is the luckiest draw where fitness is noisy.
        state = jax.device_get(state)
        candidates = self._candidates(state)
        with jax.numpy_rank_promotion("allow"):
            scored = [
                self.problem.eval(jax.random.fold_in(key, index), candidates, state.problem)[0]
                for index in range(draws)
            ]
        fitness = np.mean(jax.device_get(scored), axis=0)
        index = int(np.argmin(np.where(np.isfinite(fitness), fitness, np.inf)))
        return jax.tree.map(lambda x: x[index], candidates), float(fitness[index])

    def _generations(self, state: State, count: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        """So many generations, at most a chunk: one program for any number. The log is padded."""
        shapes = jax.eval_shape(self.generation, state)[1]
        empty = jax.tree.map(lambda x: jnp.zeros((self.chunk, *x.shape), x.dtype), shapes)

        def body(index: jax.Array, carry: Any) -> Any:
            state, log = carry
            state, new = self.generation(state)
            return state, jax.tree.map(lambda all_, x: all_.at[index].set(x), log, new)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    def _my_share(self, population: Population) -> Population:
        """This device's share of the population."""
        if self.mesh.size == 1:
            return population
        size = self.population_size // self.mesh.size
        first = jax.lax.axis_index(POPULATION) * size
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), population)

    def _of_all(self, values: jax.Array) -> jax.Array:
        """Values of the whole population, from each device's share."""
        return values if self.mesh.size == 1 else jax.lax.all_gather(values, POPULATION, tiled=True)


def _strong(value: Any) -> jax.Array:
    """An array of a strong type: Python's numbers and weak types would retrace, or vary by x64."""
    dtype = jnp.result_type(value)
    return jnp.asarray(value, jnp.int32 if jnp.issubdtype(dtype, jnp.signedinteger) else dtype)
