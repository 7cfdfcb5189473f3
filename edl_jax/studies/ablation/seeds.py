"""Evolution from several seeds in one program, and what a study measures of it.

Each seed gives what `pretrain` gives of it, but for rounding: the keys, the choice of the winner
and the held-out pairs are the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.evolution import PretrainConfig
from edl_jax.evolution.evolve import run_keys
from edl_jax.evolution.problems import Batch, RankingProblem, problem_of
from edl_jax.evolution.run import AXIS, Evolution, State
from edl_jax.objective import measure as measure_loss
from edl_jax.pairs import Pairs
from edl_jax.runs.devices import device_mesh
from edl_jax.strategies import build_strategy
from edl_jax.validation import check_seed

WATCHED = 2**31 + 4  # folded into a key, of which others draw too
WATCHED_PAIRS = 1024  # at least so many; the objective of every generation is measured on them


class Progress(NamedTuple):
    """Evolutions from several seeds, as far as they have come.

    Attributes:
      state: their states, each array with an axis of seeds in front.
      watched: for each seed `WATCHED_PAIRS` pairs that it is not selected on, likewise.
      curve: the objective of each generation's leader on them, `[generations, num_seeds]` float32;
        NaN for generations to come.
      step_sizes: of the last generation, `[num_seeds]` float32; NaN where a strategy has none.
    """

    state: State
    watched: Batch
    curve: jax.Array
    step_sizes: jax.Array


class SeedRuns(NamedTuple):
    """Functions of the keys of several seeds, `[num_seeds]`.

    Attributes:
      init: `(keys) -> progress`.
      advance: `(keys, progress, first, last) -> progress`, after the generations from `first` to
        before `last`; one compiled program, whatever the two. Donates the progress.
      leaders: `(progress) -> networks`, the best of each seed's last generation; before the first,
        a fresh one.
      winners: `(keys, progress) -> networks`: each seed's candidate that is best on held-out pairs.
      held_out: `(key) -> (Pairs, ...)`, `held_out_pairs` pairs.
      measure: `(keys, networks) -> metrics`, a dictionary for each seed: `objective`, and those of
        `rank_metrics` and `gradient_metrics`, on held-out pairs on which nothing was chosen. The
        `gradient_ratio/...` are over the overall one, so that a loss's scale has no effect.
    """

    init: Callable[[jax.Array], Progress]
    advance: Any
    leaders: Callable[[Progress], nnx.State]
    winners: Callable[[jax.Array, Progress], nnx.State]
    held_out: Callable[[jax.Array], tuple[Pairs, ...]]
    measure: Callable[[jax.Array, nnx.State], list[dict[str, float]]]


def keys_of(seeds: Sequence[int]) -> jax.Array:
    """The keys of runs with these seeds, `[num_seeds]`.

    Raises:
      ConfigError: if one is no whole number of 32 bits.
    """
    return jnp.stack([jax.random.key(check_seed("seed", seed)) for seed in seeds])


def make_seed_runs(config: PretrainConfig, num_seeds: int) -> SeedRuns:
    """Build the functions for evolutions from so many seeds, each as by `pretrain`.

    As many networks are evaluated together as `networks_at_a_time` says, those of all seeds, and
    at least one of each seed.
    """
    at_a_time = max(1, config.networks_at_a_time // num_seeds)
    ranking = RankingProblem(dataclasses.replace(config, networks_at_a_time=at_a_time))
    strategy, params = build_strategy(config, ranking.sample)
    mesh = device_mesh(AXIS, jax.local_devices()[:1])
    evolution = Evolution(problem_of(ranking.config), strategy, params, mesh=mesh)
    # As many pairs in every cell, however many the networks are selected on.
    few = RankingProblem(dataclasses.replace(config, held_out_pairs=WATCHED_PAIRS))

    def init(keys: jax.Array) -> Progress:
        watched_keys = [jax.random.fold_in(run_keys(key)[3], WATCHED) for key in keys]
        batches = [ranking.batch(key, few.held_out_pairs(key)) for key in watched_keys]
        if evolution.problem == ranking:
            ranking.check(watched_keys[0])
        watched = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
        curve = jnp.full((config.generations, num_seeds), jnp.nan)
        states = jax.jit(jax.vmap(evolution.begin))(keys)
        return Progress(states, watched, curve, jnp.full((num_seeds,), jnp.nan))

    def generation(batch: Batch, state: State) -> tuple[State, jax.Array, jax.Array]:
        state, log = evolution.generation(state)
        leader = jax.tree.map(lambda x: x[:1], evolution.candidates(state))
        return state, ranking.violations(leader, batch)[0], log["step_size"]

    @functools.partial(jax.jit, donate_argnums=(1,))
    def advance(keys: jax.Array, progress: Progress, first: jax.Array, last: jax.Array) -> Progress:
        del keys  # the states have them

        def body(index: jax.Array, now: Progress) -> Progress:
            states, objectives, steps = jax.vmap(generation)(now.watched, now.state)
            return Progress(states, now.watched, now.curve.at[index].set(objectives), steps)

        return jax.lax.fori_loop(first, last, body, progress)

    @jax.jit
    def leaders(progress: Progress) -> nnx.State:
        return jax.vmap(lambda state: _first(evolution.candidates(state)))(progress.state)

    def winners(keys: jax.Array, progress: Progress) -> nnx.State:
        found = []
        for index, key in enumerate(keys):
            state = jax.tree.map(lambda x, i=index: x[i], progress.state)
            draws = -(-config.held_out_pairs // config.pairs_per_generation)
            found.append(evolution.best(state, run_keys(key)[2], draws)[0])
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)

    def measure(keys: jax.Array, networks: nnx.State) -> list[dict[str, float]]:
        metrics = []
        for index, key in enumerate(keys):
            pairs = ranking.held_out_pairs(run_keys(key)[3])
            network = jax.tree.map(lambda x, i=index: x[i : i + 1], networks)
            value = ranking.violations(network, ranking.batch(jax.random.key(0), pairs))[0]
            found = measure_loss(
                ranking.loss(_first(network)),
                pairs,
                severity=ranking.severity,
                margin=ranking.margin,
            )
            metrics.append({"objective": float(value), **_without_scale(found)})
        return metrics

    return SeedRuns(init, advance, leaders, winners, ranking.held_out_pairs, measure)


def _first(candidates: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x: x[0], candidates)


def _without_scale(metrics: dict[str, float]) -> dict[str, float]:
    overall = metrics.pop("gradient_ratio", 0.0)
    return {
        name: value / overall if name.startswith("gradient_ratio/") else value
        for name, value in metrics.items()
        if overall or not name.startswith("gradient_ratio/")
    }
