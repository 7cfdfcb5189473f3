"""Drive any evosax algorithm, of either family, through one interface that can begin anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from evosax.algorithms import MR15_GA, PSO, DifferentialEvolution, LearnedGA
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.algorithms.distribution_based.base import DistributionBasedAlgorithm
from evosax.algorithms.distribution_based.sv.base import SV_ES
from flax import nnx

StrategyState = Any

# They ask for trials alone, and keep the best networks by themselves.
_KEEPERS = (DifferentialEvolution, LearnedGA, MR15_GA, PSO)


class Search(NamedTuple):
    """A strategy as the generations drive it; every function is pure.

    Attributes:
      begin: `(key) -> (state, population)`: a state to begin from, and fresh networks; zeros where
        a distribution gives the networks.
      ask: `(key, state, population, begun) -> (population, state)`. Where `begun` is true, nothing
        was told yet, and a population-based strategy has the fresh networks scored first.
      tell: `(key, population, fitness, state, begun) -> state`; `begun` as in `ask`.
      means: `(state) -> population`, the centres of the distribution; None for a population-based
        strategy, which has none.
      survivors: `(state) -> (population, fitness)`, the networks that the strategy has kept; None
        where those told last are all that it knows.
      step_size: `(state) -> scalar`, the mean step size; NaN where a strategy has none.
    """

    begin: Callable[[jax.Array], tuple[StrategyState, nnx.State]]
    ask: Callable[..., tuple[nnx.State, StrategyState]]
    tell: Callable[..., StrategyState]
    means: Callable[[StrategyState], nnx.State] | None
    survivors: Callable[[StrategyState], tuple[nnx.State, jax.Array]] | None
    step_size: Callable[[StrategyState], jax.Array]


def make_search(
    algorithm: EvolutionaryAlgorithm, params: Any, fresh: Callable[[jax.Array], nnx.State]
) -> Search:
    """Wrap an algorithm.

    Args:
      algorithm: population- or distribution-based.
      params: its parameters.
      fresh: `(key) -> solution`, a solution to begin from.
    """
    is_distribution = isinstance(algorithm, DistributionBasedAlgorithm)
    search = (_distribution_based if is_distribution else _population_based)(
        algorithm, params, fresh
    )
    calls = {name: _tolerant(getattr(search, name)) for name in ("begin", "ask", "tell")}
    return search._replace(**calls)


def _tolerant(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call where `jax_numpy_rank_promotion` allows what evosax counts on."""

    def allowed(*arguments: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return call(*arguments)

    return allowed


def _population_based(algorithm: Any, params: Any, fresh: Callable) -> Search:
    size = algorithm.population_size

    def begin(key: jax.Array) -> tuple[StrategyState, nnx.State]:
        key_fresh, key_state = jax.random.split(key)
        population = jax.vmap(fresh)(jax.random.split(key_fresh, size))
        unscored = jnp.full((size,), jnp.inf, jnp.float32)
        return _settled(algorithm.init(key_state, population, unscored, params)), population

    def ask(key: jax.Array, state: Any, population: nnx.State, begun: jax.Array) -> Any:
        def bred() -> Any:
            children, after = algorithm.ask(key, state, params)
            return _like(children, population), _like(after, state)

        return jax.lax.cond(begun, lambda: (population, state), bred)

    def tell(key: jax.Array, population: nnx.State, fitness: jax.Array, state: Any, begun: Any):
        return jax.lax.cond(
            begun,
            lambda: _like(algorithm.init(key, population, fitness, params), state),
            lambda: _like(algorithm.tell(key, population, fitness, state, params)[0], state),
        )

    def survivors(state: StrategyState) -> tuple[nnx.State, jax.Array]:
        is_swarm = isinstance(algorithm, PSO)  # whose particles move on from where they did best
        kept = state.population_best if is_swarm else state.population
        fitness = state.fitness_best if is_swarm else state.fitness
        return jax.vmap(algorithm._unravel_solution)(kept), fitness

    keeps = isinstance(algorithm, _KEEPERS)
    return Search(begin, ask, tell, None, survivors if keeps else None, _step_size)


def _distribution_based(algorithm: Any, params: Any, fresh: Callable) -> Search:
    several = isinstance(algorithm, SV_ES)  # a few distributions that repel one another
    num_means = algorithm.num_populations if several else 1

    def begin(key: jax.Array) -> tuple[StrategyState, nnx.State]:
        key_fresh, key_state = jax.random.split(key)
        means = jax.vmap(fresh)(jax.random.split(key_fresh, num_means))
        mean = means if several else jax.tree.map(lambda x: x[0], means)
        size = num_means * algorithm.population_size
        nobody = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), means)
        return _settled(algorithm.init(key_state, mean, params)), nobody

    def ask(key: jax.Array, state: Any, population: nnx.State, begun: jax.Array) -> Any:
        del begun
        sampled, after = algorithm.ask(key, state, params)
        return _like(sampled, population), _like(after, state)

    def tell(key: jax.Array, population: nnx.State, fitness: jax.Array, state: Any, begun: Any):
        del begun
        if several:  # evosax unfolds their populations in `ask`, but does not fold them in `tell`
            shape = (num_means, algorithm.population_size)
            population = jax.tree.map(lambda x: x.reshape(shape + x.shape[1:]), population)
        return _like(algorithm.tell(key, population, fitness, state, params)[0], state)

    def means(state: StrategyState) -> nnx.State:
        return jax.vmap(algorithm._unravel_solution)(jnp.atleast_2d(state.mean))

    return Search(begin, ask, tell, means, None, _step_size)


def _step_size(state: StrategyState) -> jax.Array:
    return jnp.mean(jnp.asarray(getattr(state, "std", jnp.nan), jnp.float32))


def _settled(state: StrategyState) -> StrategyState:
    """Arrays of plain types instead of Python numbers and weak types, which would retrace."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)


def _like(state: Any, reference: Any) -> Any:
    """Arrays in the dtypes that they had: some of evosax grow to float64 under `jax_enable_x64`."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), state, reference)
