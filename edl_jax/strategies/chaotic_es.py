"""Evolution strategy with chaotic mutation (Xiang and Pei, 2026).

A (mu + lambda) or (mu, lambda) evolution strategy (Schwefel, 1981) whose mutation noise is a
chaotic orbit. The step size follows the 1/5th success rule (Rechenberg, 1973), or a schedule.

[1] https://arxiv.org/abs/2605.03722
[2] https://link.springer.com/article/10.1023/A:1015059928466
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Lt
from evosax.algorithms.population_based.base import (
    Params as BaseParams,
    PopulationBasedAlgorithm,
    State as BaseState,
)
from evosax.types import Fitness, Population, Solution
from flax import struct

from edl_jax.checked import check
from edl_jax.strategies.mutations import MUTATIONS


@struct.dataclass
class State(BaseState):
    """State of `ChaoticES`."""

    orbit: jax.Array  # phases of the children's coordinates, `[num_children, num_dims]` uint32
    parents: jax.Array  # `[num_children]` int32, rows of the elites; in comma selection, of all
    std: jax.Array  # step size, a float32 scalar


@struct.dataclass
class Params(BaseParams):
    """Parameters of `ChaoticES`; all but the first are those of the 1/5th success rule."""

    std_init: float  # step size of the first generation (a schedule has its own)
    std_min: float
    std_max: float
    success_target: float  # share of children better than their parent that keeps the step size
    adaptation_rate: float  # how fast the logarithm of the step size follows the success rate


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
        std_schedule: optax.Schedule | None = None,
        **options: Any,
    ):
        """Initialize ChaoticES.

        Args:
          population_size: solutions evaluated in a generation, at least 2.
          solution: a solution, any pytree of arrays; gives the shapes.
          mutation: name of the mutation noise in `MUTATIONS`.
          elite_ratio: share of the population that becomes parents, in (0, 1).
          selection: "plus", or "comma".
          std_schedule: from the number of finished generations to the step size; the 1/5th success
            rule by default.
          **options: of evosax's `PopulationBasedAlgorithm`.

        Raises:
          ConfigError: for an unknown name, or a number out of range.
        """
        check("selection", selection, Literal["plus", "comma"])
        check("population_size", population_size, Annotated[int, Ge(2)])
        check("elite_ratio", elite_ratio, Annotated[float, Gt(0), Lt(1)])
        super().__init__(population_size, solution, **options)
        self.elite_ratio = elite_ratio
        self.mutation = MUTATIONS[mutation]
        self.selection = selection
        self.std_schedule = std_schedule

    @property
    def num_survivors(self) -> int:
        """Number of elites that stay in the population."""
        return self.num_elites if self.selection == "plus" else 0

    @property
    def num_children(self) -> int:
        """Number of children."""
        return self.population_size - self.num_survivors

    @property
    def _default_params(self) -> Params:
        return Params(
            std_init=0.1, std_min=1e-6, std_max=10.0, success_target=0.2, adaptation_rate=0.5
        )

    def _init(self, key: jax.Array, params: Params) -> State:
        std = params.std_init if self.std_schedule is None else self.std_schedule(0)
        dtype = jnp.promote_types(self.solution_flat.dtype, jnp.float32)
        return State(
            population=jnp.full((self.population_size, self.num_dims), jnp.nan, dtype),
            fitness=jnp.full((self.population_size,), jnp.inf, jnp.float32),
            orbit=self.mutation.init(key, (self.num_children, self.num_dims)),
            parents=jnp.zeros((self.num_children,), jnp.int32),
            std=jnp.full((), std, jnp.float32),
            best_solution=jnp.full((self.num_dims,), jnp.nan, dtype),
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key: jax.Array, state: State, params: Params) -> tuple[Population, State]:
        key_parents, key_mutation = jax.random.split(key)
        elites = select(state.fitness, self.num_elites)
        shape = (self.num_children,)
        chosen = jax.random.randint(key_parents, shape, 0, self.num_elites, jnp.int32)
        orbit, noise = self.mutation.step(key_mutation, state.orbit)
        children = state.population[elites[chosen]] + state.std * noise
        survivors = state.population[elites[: self.num_survivors]]
        # Survivors lead the next population; for comma selection parents are in the last one.
        parents = chosen if self.selection == "plus" else elites[chosen]
        return jnp.concatenate([survivors, children]), state.replace(orbit=orbit, parents=parents)

    def _tell(
        self, key: jax.Array, population: Population, fitness: Fitness, state: State, params: Params
    ) -> State:
        # A solution whose evaluation failed ranks last, and a failed child is no success.
        fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)
        if self.std_schedule is None:
            of_parents = fitness if self.selection == "plus" else state.fitness
            success = jnp.mean(fitness[self.num_survivors :] < of_parents[state.parents])
            std = adapt_std(state.std, success, params)
        else:
            std = jnp.asarray(self.std_schedule(state.generation_counter + 1), jnp.float32)
        return state.replace(population=population, fitness=fitness, std=std)


def select(fitness: Fitness, num_elites: int) -> jax.Array:
    """Rows of the best, best first, `[num_elites]`; the finite take the places of the failed."""
    fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)  # of -inf too
    num_finite = jnp.maximum(jnp.sum(jnp.isfinite(fitness)), 1)
    return jnp.argsort(fitness)[jnp.arange(num_elites) % num_finite]


def adapt_std(std: jax.Array, success: jax.Array, params: Params) -> jax.Array:
    """Step size by the 1/5th success rule, in its smooth form."""
    step = (success - params.success_target) / (1 - params.success_target)
    return jnp.clip(std * jnp.exp(params.adaptation_rate * step), params.std_min, params.std_max)


def _by_name(settings: Any, solution: Solution) -> ChaoticES:
    strategy = settings.strategy
    constant = optax.constant_schedule(strategy.std_init)
    return ChaoticES(
        settings.population_size,
        solution,
        mutation=strategy.mutation,
        elite_ratio=strategy.elite_ratio,
        selection=strategy.selection,
        std_schedule=constant if strategy.step_size == "constant" else None,
    )


# By name: what builds it from a `PretrainConfig`, and the fields of its `strategy` that it reads.
STRATEGIES = {"ChaoticES": (_by_name, ("mutation", "elite_ratio", "selection", "step_size"))}
