"""One generation, and a whole run, as pure functions of a key.

Everything static (network, strategy, pair counts) is closed over, so the functions compile once.
The key of a generation is `fold_in(key, generation)`: any generation can be replayed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.evolution.config import PretrainConfig
from edl_jax.pairs import Pairs, log_probabilities, sample_pairs
from edl_jax.ranking import MARGINS, SEVERITIES, margin_violation
from edl_jax.strategy import ChaoticES
from edl_jax.strategy.chaotic_es import State

Log = dict[str, jax.Array]


class Batch(NamedTuple):
    """Pairs as the population sees them, in random order.

    Attributes:
      features: `[num_features, num_pairs]` float32.
      severities: `[num_pairs]` float32.
      regimes: `[num_pairs]` int32.
      class_counts: class count of each pair, `[num_pairs]` int32.
    """

    features: jax.Array
    severities: jax.Array
    regimes: jax.Array
    class_counts: jax.Array


class Evolution(NamedTuple):
    """The pieces of a run, all pure and jit-able.

    Attributes:
      strategy: the evolution strategy, built for one network's parameters.
      graphdef: the loss network's NNX graph definition.
      sample: `(key) -> (Pairs, ...)`, fresh pairs, one set for each class count.
      observe: `(key, pairs) -> Batch`, those pairs as the population sees them.
      score: `(population, batch) -> fitness`, `[population_size]`, lower is better.
      init: `(key) -> state` of the strategy, its first population not yet scored.
      generation: `(key, state) -> (state, log)`; `log` holds scalars.
      elites: `(state) -> population`, the elites of the last generation, best first.
    """

    strategy: ChaoticES
    graphdef: nnx.GraphDef
    sample: Callable[[jax.Array], tuple[Pairs, ...]]
    observe: Callable[[jax.Array, tuple[Pairs, ...]], Batch]
    score: Callable[[nnx.State, Batch], jax.Array]
    init: Callable[[jax.Array], State]
    generation: Callable[[jax.Array, State], tuple[State, Log]]
    elites: Callable[[State], nnx.State]


def make_evolution(config: PretrainConfig) -> Evolution:
    """Build the functions of a run from its configuration."""
    architecture = config.architecture()
    graphdef, solution = nnx.split(architecture.build(jax.random.key(0)))
    severity, margin = SEVERITIES[config.severity], MARGINS[config.margin]
    strategy = ChaoticES(
        config.population_size, solution, mutation=config.mutation, elite_ratio=config.elite_ratio
    )
    params = strategy.default_params.replace(std_init=config.std_init)

    def sample(key: jax.Array) -> tuple[Pairs, ...]:
        each, extra = divmod(config.pairs_per_generation, len(config.class_counts))
        return tuple(
            sample_pairs(
                jax.random.fold_in(key, index),
                each + (index < extra),
                num_classes,
                mixture=config.mixture,
            )
            for index, num_classes in enumerate(config.class_counts)
        )

    def observe(key: jax.Array, pairs_of_counts: tuple[Pairs, ...]) -> Batch:
        network = nnx.merge(graphdef, solution)  # features use no parameters
        parts = []
        for pairs in pairs_of_counts:
            num_pairs, num_classes = pairs.probabilities.shape
            log_p = log_probabilities(pairs.probabilities)
            class_counts = jnp.full((num_pairs,), num_classes, jnp.int32)
            parts.append(
                Batch(
                    network.features(log_p, pairs.labels),
                    severity(log_p, pairs.labels),
                    pairs.regimes,
                    class_counts,
                )
            )
        whole = Batch(*(jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))
        # Class counts come in blocks, and the objective takes opponents by position: mix them.
        order = jax.random.permutation(key, whole.severities.size)
        return jax.tree.map(lambda x: x[..., order], whole)

    def score(population: nnx.State, batch: Batch) -> jax.Array:
        def violation(solution: nnx.State) -> jax.Array:
            losses = nnx.merge(graphdef, solution).from_features(batch.features)
            return margin_violation(
                losses, batch.severities, margin=margin, num_opponents=config.num_opponents
            )

        return jax.lax.map(violation, population, batch_size=config.networks_at_a_time)

    def init(key: jax.Array) -> State:
        key_networks, key_strategy = jax.random.split(key)
        population = jax.vmap(lambda key: nnx.state(architecture.build(key)))(
            jax.random.split(key_networks, config.population_size)
        )
        # Not scored yet, hence infinite: generation 0 scores its parents with their children.
        fitness = jnp.full((config.population_size,), jnp.inf)
        state = strategy.init(key_strategy, population, fitness, params)
        # Plain types, not Python's weak ones, which the next generation would not give back: the
        # compiled chunk of generations must see the same types every time.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)

    def generation(key: jax.Array, state: State) -> tuple[State, Log]:
        key_sample, key_observe, key_ask, key_tell = jax.random.split(key, 4)
        # Elites and children meet the same pairs (common random numbers).
        population, state = strategy.ask(key_ask, state, params)
        fitness = score(population, observe(key_observe, sample(key_sample)))
        state, _ = strategy.tell(key_tell, population, fitness, state, params)
        finite = jnp.isfinite(fitness)
        log = {
            "best_fitness": jnp.min(state.fitness),
            "mean_fitness": jnp.mean(fitness, where=finite),
            "step_size": state.std,
            "failed": jnp.sum(~finite),
        }
        return state, log

    def elites(state: State) -> nnx.State:
        best = jnp.argsort(state.fitness)[: strategy.num_elites]
        return jax.tree.map(lambda x: x[best], strategy.get_population(state))

    return Evolution(strategy, graphdef, sample, observe, score, init, generation, elites)


def make_run(config: PretrainConfig) -> Callable[[jax.Array], tuple[nnx.State, Log]]:
    """A whole evolution as one function: `run(key) -> (elites, log)`.

    The elites of the last generation come best first, with a leading axis; each entry of the log is
    `[generations]`. `jax.vmap(run)` evolves one population for each key. `pretrain` runs the same
    generations in chunks, with the same keys, and so reaches the same elites.
    """
    evolution = make_evolution(config)

    def run(key: jax.Array) -> tuple[nnx.State, Log]:
        key_init, key_run = run_keys(key)[:2]
        state, log = jax.lax.scan(
            lambda state, index: evolution.generation(jax.random.fold_in(key_run, index), state),
            evolution.init(key_init),
            jnp.arange(config.generations),
        )
        return evolution.elites(state), log

    return run


def run_keys(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys of a run: first population, generations, choice of the winner, measurement."""
    init, generations, choice, measurement = jax.random.split(key, 4)
    return init, generations, choice, measurement
