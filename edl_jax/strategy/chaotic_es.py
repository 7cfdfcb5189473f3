"""Evolution strategy with chaotic mutation (Xiang and Pei, 2026).

A (mu + lambda) evolution strategy (Schwefel, 1981) whose mutation noise is a chaotic orbit, with
the 1/5th success rule for the step size (Rechenberg, 1973).

[1] https://arxiv.org/abs/2605.03722
[2] https://link.springer.com/article/10.1023/A:1015059928466
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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
from edl_jax.strategy.mutations import MUTATIONS


@struct.dataclass
class State(BaseState):
    """State of `ChaoticES`.

    Attributes:
      orbit: phase of the chaotic orbit of every coordinate of every child, `[num_children,
        num_dims]` uint32.
      parents: row of each child's parent in the population, `[num_children]` int32.
      std: step size, a float32 scalar.
    """

    orbit: jax.Array
    parents: jax.Array
    std: jax.Array


@struct.dataclass
class Params(BaseParams):
    """Parameters of `ChaoticES`.

    Attributes:
      std_init: step size of the first generation.
      std_min: lower bound of the step size.
      std_max: upper bound of the step size.
      success_target: share of children better than their parent at which the step size stays.
      adaptation_rate: how fast the logarithm of the step size follows the success rate.
    """

    std_init: float
    std_min: float
    std_max: float
    success_target: float
    adaptation_rate: float


class ChaoticES(PopulationBasedAlgorithm):
    """(mu + lambda) evolution strategy with chaotic mutation.

    `ask` returns the mu elites, best first, and then the lambda children, and `population_size`
    counts both: a plain ask-evaluate-tell loop scores the elites again in every generation, on the
    same data as the children, so that no lucky score of a noisy fitness survives.
    """

    def __init__(
        self,
        population_size: int,
        solution: Solution,
        mutation: str = "logistic",
        elite_ratio: float = 0.25,
        fitness_shaping_fn: Callable = identity_fitness_shaping_fn,
        metrics_fn: Callable = metrics_fn,
    ):
        """Initialize ChaoticES.

        Args:
          population_size: elites and children together, at least 2.
          solution: a solution, any pytree of arrays; gives the shapes.
          mutation: name of the mutation noise in `MUTATIONS`.
          elite_ratio: share of the population that survives as parents, in (0, 1).
          fitness_shaping_fn: as in evosax.
          metrics_fn: as in evosax.

        Raises:
          ConfigError: for an unknown mutation, or no room for an elite and a child.
        """
        if mutation not in MUTATIONS:
            raise ConfigError(f"mutation is {mutation!r}; expected one of {', '.join(MUTATIONS)}.")
        if population_size < 2 or not 0 < elite_ratio < 1:
            raise ConfigError(
                f"population_size is {population_size} and elite_ratio {elite_ratio}; expected at "
                "least 2 and a ratio between 0 and 1, so that there are elites and children."
            )
        super().__init__(population_size, solution, fitness_shaping_fn, metrics_fn)
        self.elite_ratio = elite_ratio
        self.mutation = MUTATIONS[mutation]

    @property
    def num_children(self) -> int:
        """Number of children (lambda)."""
        return self.population_size - self.num_elites

    @property
    def _default_params(self) -> Params:
        return Params(
            std_init=0.1, std_min=1e-6, std_max=10.0, success_target=0.2, adaptation_rate=0.5
        )

    def _init(self, key: jax.Array, params: Params) -> State:
        return State(
            population=jnp.full((self.population_size, self.num_dims), jnp.nan),
            fitness=jnp.full((self.population_size,), jnp.inf),
            orbit=self.mutation.init(key, (self.num_children, self.num_dims)),
            parents=jnp.zeros((self.num_children,), jnp.int32),
            std=jnp.asarray(params.std_init, jnp.float32),
            best_solution=jnp.full((self.num_dims,), jnp.nan),
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key: jax.Array, state: State, params: Params) -> tuple[Population, State]:
        key_parents, key_mutation = jax.random.split(key)
        elites = state.population[jnp.argsort(state.fitness)[: self.num_elites]]
        parents = jax.random.randint(key_parents, (self.num_children,), 0, self.num_elites)
        orbit, noise = self.mutation.step(key_mutation, state.orbit)
        children = mutation(elites[parents], state.std, noise)
        population = jnp.concatenate([elites, children])
        return population, state.replace(orbit=orbit, parents=parents)

    def _tell(
        self,
        key: jax.Array,
        population: Population,
        fitness: Fitness,
        state: State,
        params: Params,
    ) -> State:
        # A solution whose evaluation failed ranks last, and a failed child is no success.
        fitness = jnp.where(jnp.isnan(fitness), jnp.inf, fitness)
        success = jnp.mean(fitness[self.num_elites :] < fitness[state.parents])
        return state.replace(
            population=population,
            fitness=fitness,
            std=adapt_std(state.std, success, params),
        )


def mutation(solution: Solution, std: jax.Array, noise: jax.Array) -> Solution:
    """Mutation of a solution by unit-variance noise."""
    return solution + std * noise


def adapt_std(std: jax.Array, success: jax.Array, params: Params) -> jax.Array:
    """Step size by the 1/5th success rule, in its smooth form."""
    step = (success - params.success_target) / (1 - params.success_target)
    return jnp.clip(std * jnp.exp(params.adaptation_rate * step), params.std_min, params.std_max)
