"""Any evosax algorithm, of either family, through one interface."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.algorithms.distribution_based.base import DistributionBasedAlgorithm
from evosax.types import Fitness, Population, Solution


class Search:
    """A strategy as generations drive it: pure methods, and `sample(key)` for a first solution."""

    def __init__(
        self, algorithm: EvolutionaryAlgorithm, params: Any, sample: Callable[[jax.Array], Solution]
    ):
        self.algorithm: Any = algorithm
        self.params, self.sample = params, sample
        self.has_mean = isinstance(algorithm, DistributionBasedAlgorithm)
        self.num_means = getattr(algorithm, "num_populations", 0)  # of SV_ES, not of others
        self.population_size = algorithm.population_size * (self.num_means or 1)

    def init(self, key: jax.Array) -> tuple[Any, Population]:
        """A state to begin from, and fresh solutions, of which a distribution has the first."""
        key_fresh, key_state = jax.random.split(key)
        fresh = jax.vmap(self.sample)(jax.random.split(key_fresh, self.population_size))
        if not self.has_mean:
            unscored = jnp.full((self.population_size,), jnp.inf, jnp.float32)
            return self.algorithm.init(key_state, fresh, unscored, self.params), fresh
        first = slice(self.num_means) if self.num_means else 0
        mean = jax.tree.map(lambda x: x[first], fresh)
        return self.algorithm.init(key_state, mean, self.params), fresh

    def ask(self, key: jax.Array, state: Any, population: Population, is_first: Any) -> Any:
        """The next solutions, and the state. A population-based one has the fresh scored first."""

        def bred() -> Any:
            return _like(self.algorithm.ask(key, state, self.params), (population, state))

        if self.has_mean:
            return bred()
        return jax.lax.cond(is_first, lambda: (population, state), bred)

    def tell(
        self, key: jax.Array, population: Population, fitness: Fitness, state: Any, is_first: Any
    ) -> Any:
        """The state after a generation."""
        if self.num_means:  # evosax unfolds their populations in `ask`, but does not fold them here
            shape = (self.num_means, self.algorithm.population_size)
            population = jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), population)

        def updated() -> Any:
            after, _ = self.algorithm.tell(key, population, fitness, state, self.params)
            return _like(after, state)

        def begun() -> Any:
            return _like(self.algorithm.init(key, population, fitness, self.params), state)

        return updated() if self.has_mean else jax.lax.cond(is_first, begun, updated)

    def kept(self, state: Any) -> Population:
        """What a strategy keeps of all generations: its means, and the best it was ever told."""
        rows = [state.mean] if self.has_mean else []
        flat = jnp.concatenate([jnp.atleast_2d(x) for x in (*rows, state.best_solution)])
        return jax.vmap(self.algorithm._unravel_solution)(flat)


def without_failures(population: Population, fitness: Fitness) -> tuple[Population, Fitness]:
    """Failed solutions, and their fitness, replaced by the worst that did not fail, if any.

    No strategy can select what failed; one that weighs by rank still moves away from the worst.
    """
    finite = jnp.isfinite(fitness)
    kept = finite | ~jnp.any(finite)
    worst = jnp.argmax(jnp.where(finite, fitness, -jnp.inf))
    mended = jax.tree.map(
        lambda x: jnp.where(kept.reshape((-1,) + (1,) * (x.ndim - 1)), x, x[worst]), population
    )
    return mended, jnp.where(kept, fitness, fitness[worst])


def _like(state: Any, reference: Any) -> Any:
    """Arrays in the dtypes that they had: some of evosax grow to float64 under `jax_enable_x64`."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), state, reference)
