"""Evolution strategy with chaotic mutation (Xiang and Pei, 2026).

A (mu + lambda) or (mu, lambda) evolution strategy (Schwefel, 1981) whose mutation noise is a
chaotic orbit. The step size follows the 1/5th success rule (Rechenberg, 1973), adapts itself in
every individual (Beyer and Schwefel, 2002) or keeps to a schedule.

[1] https://arxiv.org/abs/2605.03722
[2] https://link.springer.com/article/10.1023/A:1015059928466
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms.population_based.base import (
    Params as BaseParams,
    PopulationBasedAlgorithm,
    State as BaseState,
    metrics_fn,
)
from evosax.core.fitness_shaping import identity_fitness_shaping_fn
from evosax.types import Fitness, Population, Solution
from flax import struct

from edl_jax.errors import ConfigError
from edl_jax.strategies.mutations import MUTATIONS


@struct.dataclass
class State(BaseState):
    """State of `ChaoticES`.

    Attributes:
      orbit: phase of the chaotic orbit of every coordinate of every child, `[num_children,
        num_dims]` uint32.
      parents: row of each child's parent in the population it was bred from: its elites for plus
        selection, the whole of it for comma selection, `[num_children]` int32.
      std: step size, float32: a scalar, or `[population_size]` for a self-adaptive one.
    """

    orbit: jax.Array
    parents: jax.Array
    std: jax.Array


@struct.dataclass
class Params(BaseParams):
    """Parameters of `ChaoticES`.

    Attributes:
      std_init: step size of the first generation (a schedule has its own).
      std_min: lower bound of the step size.
      std_max: upper bound of the step size.
      success_target: share of children better than their parent at which the step size stays.
      adaptation_rate: how fast the logarithm of the step size follows the success rate.
      self_adaptation_rate: deviation of the logarithm of a self-adaptive step size from one
        generation to the next.
      crossover_rate: share of the coordinates that come from the second parent.
    """

    std_init: float
    std_min: float
    std_max: float
    success_target: float
    adaptation_rate: float
    self_adaptation_rate: float
    crossover_rate: float


class ChaoticES(PopulationBasedAlgorithm):
    """Evolution strategy with chaotic mutation.

    With plus selection `ask` returns the mu elites, best first, and then the lambda children, and
    `population_size` counts both: a plain ask-evaluate-tell loop scores the elites again in every
    generation, on the same data as the children, so that no lucky score of a noisy fitness
    survives. With comma selection `ask` returns children only, and nobody survives.
    """

    def __init__(
        self,
        population_size: int,
        solution: Solution,
        mutation: str = "logistic",
        elite_ratio: float = 0.25,
        selection: Literal["plus", "comma"] = "plus",
        use_crossover: bool = False,
        step_size: Literal["success_rule", "self_adaptive"] | optax.Schedule = "success_rule",
        fitness_shaping_fn: Callable = identity_fitness_shaping_fn,
        metrics_fn: Callable = metrics_fn,
    ):
        """Initialize ChaoticES.

        Args:
          population_size: solutions evaluated in a generation, at least 2.
          solution: a solution, any pytree of arrays; gives the shapes.
          mutation: name of the mutation noise in `MUTATIONS`.
          elite_ratio: share of the population that becomes parents, in (0, 1).
          selection: "plus", or "comma".
          use_crossover: whether a child mixes the coordinates of two parents.
          step_size: "success_rule", "self_adaptive", or an optax schedule from the number of
            finished generations to the step size.
          fitness_shaping_fn: as in evosax.
          metrics_fn: as in evosax.

        Raises:
          ConfigError: for an unknown name, or no room for an elite and a child.
        """
        if selection not in SELECTIONS:
            raise ConfigError(
                f"selection is {selection!r}; expected one of {', '.join(SELECTIONS)}."
            )
        if not callable(step_size) and step_size not in STEP_SIZE_RULES:
            raise ConfigError(
                f"step_size is {step_size!r}; expected one of {', '.join(STEP_SIZE_RULES)}, or an "
                "optax schedule."
            )
        is_whole = isinstance(population_size, int | np.integer)
        is_number = isinstance(elite_ratio, float | int)
        if not is_whole or population_size < 2 or not is_number or not 0 < elite_ratio < 1:
            raise ConfigError(
                f"population_size is {population_size!r} and elite_ratio {elite_ratio!r}; expected "
                "a whole number of at least 2 and a ratio between 0 and 1, so that there are "
                "elites and children."
            )
        super().__init__(population_size, solution, fitness_shaping_fn, metrics_fn)
        self.elite_ratio = elite_ratio
        self.mutation = MUTATIONS[mutation]
        self.selection = selection
        self.use_crossover = use_crossover
        self.step_size = step_size

    @property
    def num_children(self) -> int:
        """Number of children (lambda)."""
        return self.population_size - self._num_survivors

    @property
    def _num_survivors(self) -> int:
        return self.num_elites if self.selection == "plus" else 0

    @property
    def _default_params(self) -> Params:
        return Params(
            std_init=0.1,
            std_min=1e-6,
            std_max=10.0,
            success_target=0.2,
            adaptation_rate=0.5,
            self_adaptation_rate=self.num_dims**-0.5,
            crossover_rate=0.5,
        )

    def _init(self, key: jax.Array, params: Params) -> State:
        std = self.step_size(0) if callable(self.step_size) else params.std_init
        dtype = jnp.promote_types(self.solution_flat.dtype, jnp.float32)
        shape = (self.population_size,) if self.step_size == "self_adaptive" else ()
        return State(
            population=jnp.full((self.population_size, self.num_dims), jnp.nan, dtype),
            fitness=jnp.full((self.population_size,), jnp.inf, jnp.float32),
            orbit=self.mutation.init(key, (self.num_children, self.num_dims)),
            parents=jnp.zeros((self.num_children,), jnp.int32),
            std=jnp.full(shape, std, jnp.float32),
            best_solution=jnp.full((self.num_dims,), jnp.nan, dtype),
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key: jax.Array, state: State, params: Params) -> tuple[Population, State]:
        key_parents, key_mutation, key_std, key_crossover = jax.random.split(key, 4)
        elites = select(state.fitness, self.num_elites)
        chosen = random_rows(key_parents, self.num_children, self.num_elites)
        children = state.population[elites[chosen]]
        if self.use_crossover:
            key_second, key_mask = jax.random.split(key_crossover)
            second = random_rows(key_second, self.num_children, self.num_elites)
            others = state.population[elites[second]]
            children = crossover(key_mask, children, others, params.crossover_rate)
        std, child_std = state.std, state.std
        if self.step_size == "self_adaptive":
            child_std = adapt_std_by_itself(key_std, state.std[elites[chosen]], params)
            std = jnp.concatenate([state.std[elites[: self._num_survivors]], child_std])
            child_std = child_std[:, None]
        orbit, noise = self.mutation.step(key_mutation, state.orbit)
        survivors = state.population[elites[: self._num_survivors]]
        population = jnp.concatenate([survivors, mutation(children, child_std, noise)])
        # Survivors lead the next population; for comma selection parents are in the last one.
        parents = chosen if self.selection == "plus" else elites[chosen]
        return population, state.replace(orbit=orbit, parents=parents, std=std)

    def _tell(
        self,
        key: jax.Array,
        population: Population,
        fitness: Fitness,
        state: State,
        params: Params,
    ) -> State:
        # A solution whose evaluation failed ranks last, and a failed child is no success. (In a run
        # of `pretrain` it has the worst fitness of its generation instead: see `without_failures`.)
        fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)
        std = state.std
        if callable(self.step_size):
            std = jnp.asarray(self.step_size(state.generation_counter + 1), jnp.float32)
        elif self.step_size == "success_rule":
            of_parents = fitness if self.selection == "plus" else state.fitness
            success = jnp.mean(fitness[self._num_survivors :] < of_parents[state.parents])
            std = adapt_std(state.std, success, params)
        return state.replace(population=population, fitness=fitness, std=std)


SELECTIONS = ("plus", "comma")
STEP_SIZE_RULES = ("success_rule", "self_adaptive")


def select(fitness: Fitness, num_elites: int) -> jax.Array:
    """Rows of the best, best first, `[num_elites]`; a failed solution (NaN, inf) never among them.

    Where fewer than `num_elites` are finite, those take the places of the failed in turn.
    """
    fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)  # of -inf too
    place = jnp.arange(num_elites)
    num_finite = jnp.maximum(jnp.sum(jnp.isfinite(fitness)), 1)
    return jnp.argsort(fitness)[jnp.where(place < num_finite, place, place % num_finite)]


def random_rows(key: jax.Array, number: int, num_rows: int) -> jax.Array:
    """Rows drawn with replacement, `[number]` int32."""
    return jax.random.randint(key, (number,), 0, num_rows, jnp.int32)


def crossover(
    key: jax.Array, parent_1: Solution, parent_2: Solution, crossover_rate: float | jax.Array
) -> Solution:
    """Uniform crossover: each coordinate from the second parent with the given probability."""
    rate = jnp.asarray(crossover_rate, jnp.float32)
    return jnp.where(jax.random.bernoulli(key, rate, parent_1.shape), parent_2, parent_1)


def mutation(solution: Solution, std: jax.Array, noise: jax.Array) -> Solution:
    """Mutation of a solution by unit-variance noise."""
    return solution + std * noise


def adapt_std(std: jax.Array, success: jax.Array, params: Params) -> jax.Array:
    """Step size by the 1/5th success rule, in its smooth form."""
    step = (success - params.success_target) / (1 - params.success_target)
    return jnp.clip(std * jnp.exp(params.adaptation_rate * step), params.std_min, params.std_max)


def adapt_std_by_itself(key: jax.Array, std: jax.Array, params: Params) -> jax.Array:
    """Log-normal self-adaptation of each individual's step size (Beyer and Schwefel, 2002)."""
    step = params.self_adaptation_rate * jax.random.normal(key, std.shape, std.dtype)
    return jnp.clip(std * jnp.exp(step), params.std_min, params.std_max)
