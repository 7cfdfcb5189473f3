"""One generation, and a whole run, as pure functions of a key.

Everything static (network, strategy, pair counts) is closed over, so the functions compile once.
The key of a generation is `fold_in(key, generation)`: any generation can be replayed.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from evosax.algorithms.base import EvolutionaryAlgorithm
from flax import nnx, struct

from edl_jax.errors import ConfigError
from edl_jax.evolution import restarts as restarting
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.restarts import Restarts
from edl_jax.evolution.scoring import Batch, make_score, without_failures
from edl_jax.evolution.search import make_search
from edl_jax.evolution.sharding import my_share, of_all
from edl_jax.evolution.terms import Term, make_terms
from edl_jax.objective import MARGINS, SEVERITIES, apply_severity
from edl_jax.pairs import Pairs, log_probabilities, sample_pairs
from edl_jax.strategies import build_strategy

Log = dict[str, jax.Array]
FINAL_DRAWS = 8  # of every term of the fitness, when the winner is chosen

# Several functions may be given one key: each first folds in a number of its own, so that none
# draws what another does. `sample` folds in the index of a class count, which is smaller.
ORDER, TERMS, HELD_OUT, TASKS, WATCHED = range(2**31, 2**31 + 5)


@struct.dataclass
class State:
    """State of an evolution.

    Attributes:
      strategy: the state of the strategy.
      population: the networks scored last, `[population_size, ...]`.
      fitness: their fitness, `[population_size]` float32, lower is better.
      begin: whether the next generation is the first of an attempt, a bool scalar.
      restarts: None where the run never restarts.
    """

    strategy: Any
    population: nnx.State
    fitness: jax.Array
    begin: jax.Array
    restarts: Restarts | None


class Evolution(NamedTuple):
    """The pieces of a run, all pure and jit-able.

    Attributes:
      strategy: the evolution strategy, built for one network's parameters.
      graphdef: the loss network's NNX graph definition.
      sample: `(key) -> (Pairs, ...)`, fresh pairs, one set for each class count.
      observe: `(key, pairs) -> Batch`, those pairs as the population sees them.
      score: `(population, batch) -> violation`, `[population_size]`, lower is better.
      terms: what else a generation's fitness holds, by name; mostly nothing. Fitness is the
        violation and the weighted values of the terms together.
      final_score: `(candidates, batch, key) -> fitness`, by which the winner is chosen: several
        draws of every term are in it, and it is infinity where it is not finite.
      init: `(key) -> state`; its networks are not scored yet.
      generation: `(key, state) -> (state, log)`; `log` holds scalars.
      candidates: `(state) -> population`: the best of the last generation, or of what the strategy
        has kept of all, best first; and then the strategy's means and the leaders of earlier
        attempts, where there are any.
    """

    strategy: EvolutionaryAlgorithm
    graphdef: nnx.GraphDef
    sample: Callable[[jax.Array], tuple[Pairs, ...]]
    observe: Callable[[jax.Array, tuple[Pairs, ...]], Batch]
    score: Callable[[nnx.State, Batch], jax.Array]
    terms: dict[str, Term]
    final_score: Callable[[nnx.State, Batch, jax.Array], jax.Array]
    init: Callable[[jax.Array], State]
    generation: Callable[[jax.Array, State], tuple[State, Log]]
    candidates: Callable[[State], nnx.State]


def make_evolution(config: PretrainConfig, *, shards: int = 1) -> Evolution:
    """Build the functions of a run from its configuration.

    Args:
      config: the configuration.
      shards: among how many devices the population is divided for scoring. If more than 1,
        `generation` must run on each of them, under `jax.shard_map` with the axis "pop". All draw
        the same pairs from the same key, and exchange nothing but fitness.

    Raises:
      ConfigError: if the strategy refuses the configuration, or the population cannot be divided.
    """
    if config.population_size % shards:
        lower = config.population_size // shards * shards
        raise ConfigError(
            f"PretrainConfig.population_size is {config.population_size}, which {shards} devices "
            f"cannot share equally; expected a multiple of {shards}, such as {lower + shards}"
            + (f" or {lower}." if lower else ".")
        )
    # Blocks are whole. The devices' number must not shape them (`in_blocks`): not a share's size.
    at_a_time = min(config.networks_at_a_time, config.population_size)
    config = dataclasses.replace(config, networks_at_a_time=at_a_time)
    architecture = config.architecture()
    graphdef, solution = nnx.split(architecture.build(jax.random.key(0)))
    severity = SEVERITIES[config.severity]
    strategy, params = build_strategy(config, solution)
    search = make_search(strategy, params, architecture.initial_state)
    score = make_score(
        graphdef,
        margin=MARGINS[config.margin],
        num_opponents=config.num_opponents,
        networks_at_a_time=config.networks_at_a_time,
        pairs_at_a_time=config.pairs_at_a_time,
        fused=config.kernel == "pallas",
    )

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
                    apply_severity(severity, log_p, pairs.labels),
                    pairs.regimes,
                    class_counts,
                )
            )
        whole = Batch(*(jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))
        # Class counts come in blocks, and the objective takes opponents by position: mix them.
        order = jax.random.permutation(jax.random.fold_in(key, ORDER), whole.severities.size)
        return jax.tree.map(lambda x: x[..., order], whole)

    terms = make_terms(config, graphdef, sample)

    def init(key: jax.Array) -> State:
        strategy_state, population = search.begin(key)
        leader = jax.tree.map(lambda x: x[0], population)
        return State(
            strategy=strategy_state,
            population=population,
            fitness=jnp.full((config.population_size,), jnp.inf, jnp.float32),
            begin=jnp.asarray(True),
            restarts=restarting.no_restarts(leader) if config.restart_after else None,
        )

    def generation(key: jax.Array, state: State) -> tuple[State, Log]:
        key_begin, key_sample, key_observe, key_ask, key_tell = jax.random.split(key, 5)
        known = (state.strategy, state.population)
        if config.restart_after:
            known = jax.lax.cond(state.begin, lambda: search.begin(key_begin), lambda: known)
        # Barriers keep XLA from compiling the strategy differently for another number of shards.
        barrier = jax.lax.optimization_barrier
        population, asked = barrier(search.ask(key_ask, *known, state.begin))
        # All networks, elites and children, meet the same pairs (common random numbers).
        batch = observe(key_observe, sample(key_sample))
        raw = barrier(of_all(score(my_share(population, shards), batch), shards))
        values = {}
        for index, (name, term) in enumerate(terms.items(), start=5):  # after the five keys above
            found = term.score(my_share(population, shards), jax.random.fold_in(key, index))
            values[name] = barrier(of_all(found, shards))
            raw += term.weight * values[name]
        finite = jnp.isfinite(raw)
        population, fitness = without_failures(population, raw)
        told = search.tell(key_tell, population, fitness, asked, state.begin)
        best, begin, restarts = jnp.min(fitness), jnp.asarray(False), state.restarts
        if restarts is not None:
            leader = jax.tree.map(lambda x: x[jnp.argmin(fitness)], population)
            restarts, begin = restarting.update(
                restarts, best, leader, state.begin, config.restart_after
            )
        log = {
            "best_fitness": best,
            "mean_fitness": jnp.mean(raw, where=finite),
            "step_size": search.step_size(told),
            "failed": jnp.sum(~finite, dtype=jnp.int32),
            "restarts": jnp.zeros((), jnp.int32) if restarts is None else restarts.count,
        }
        log |= {name: value[jnp.argmin(fitness)] for name, value in values.items()}
        return State(told, population, fitness, begin, restarts), log

    def final_score(candidates: nnx.State, batch: Batch, key: jax.Array) -> jax.Array:
        fitness, key = score(candidates, batch), jax.random.fold_in(key, TERMS)
        for index, term in enumerate(terms.values()):
            keys = jax.random.split(jax.random.fold_in(key, index), FINAL_DRAWS)
            values = jax.lax.map(partial(term.score, candidates), keys)
            fitness += term.weight * jnp.mean(values, axis=0)
        return jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)

    def candidates(state: State) -> nnx.State:
        num_best = max(1, int(config.elite_ratio * config.population_size))
        population, fitness = state.population, state.fitness
        if search.survivors is not None:
            population, fitness = search.survivors(state.strategy)
        best = jnp.argsort(fitness)[:num_best]
        found = [jax.tree.map(lambda x: x[best], population)]
        if search.means is not None:
            found.append(search.means(state.strategy))
        if state.restarts is not None:
            found.append(state.restarts.champions)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)

    return Evolution(
        strategy, graphdef, sample, observe, score, terms, final_score, init, generation, candidates
    )


def make_run(config: PretrainConfig) -> Callable[[jax.Array], tuple[nnx.State, Log]]:
    """A whole evolution as one function: `run(key) -> (candidates, log)`.

    The candidates (`Evolution.candidates`) of the last generation have a leading axis; each entry
    of the log is `[generations]`. `jax.vmap(run)` evolves one population for each key. `pretrain`
    runs the same generations in chunks, with the same keys, and so reaches the same candidates.
    """
    evolution = make_evolution(config)

    def run(key: jax.Array) -> tuple[nnx.State, Log]:
        key_init, key_run = run_keys(key)[:2]
        state, log = jax.lax.scan(
            lambda state, index: evolution.generation(jax.random.fold_in(key_run, index), state),
            evolution.init(key_init),
            jnp.arange(config.generations),
        )
        return evolution.candidates(state), log

    return run


def run_keys(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys of a run: first population, generations, choice of the winner, measurement."""
    init, generations, choice, measurement = jax.random.split(key, 4)
    return init, generations, choice, measurement
