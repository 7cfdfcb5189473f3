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
import numpy as np
from flax import nnx

from edl_jax.evolution import PretrainConfig, make_evolution, run_keys
from edl_jax.evolution.engine import WATCHED, State
from edl_jax.evolution.monitor import check_ranks
from edl_jax.evolution.pretraining import held_out_pairs
from edl_jax.evolution.scoring import Batch
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    GradientSample,
    gradient_metrics,
    logit_gradients,
    margin_violation,
    rank_metrics,
)
from edl_jax.pairs import Pairs
from edl_jax.strategies import STRATEGIES
from edl_jax.validation import check_seed

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
    evolution = make_evolution(dataclasses.replace(config, networks_at_a_time=at_a_time))
    defaults = {name: getattr(PretrainConfig, name) for name in ("mutation", "selection")}
    # What the names stand for: they may be registered anew.
    parts = SEVERITIES[config.severity], MARGINS[config.margin], STRATEGIES[config.strategy]
    programs = _programs(dataclasses.replace(config, **defaults), parts)
    observe, sample = programs.observe, programs.sample
    init_states = jax.jit(jax.vmap(lambda key: evolution.init(run_keys(key)[0])))

    def held_out(key: jax.Array) -> tuple[Pairs, ...]:
        return held_out_pairs(sample, key, config)

    def init(keys: jax.Array) -> Progress:
        # As many pairs in every cell, however many the networks are selected on.
        few = dataclasses.replace(config, held_out_pairs=WATCHED_PAIRS)
        watched_keys = [jax.random.fold_in(run_keys(key)[3], WATCHED) for key in keys]
        batches = [observe(key, held_out_pairs(sample, key, few)) for key in watched_keys]
        check_ranks(config, batches[0].severities)
        watched = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)
        curve = jnp.full((config.generations, num_seeds), jnp.nan)
        return Progress(init_states(keys), watched, curve, jnp.full((num_seeds,), jnp.nan))

    def generation(
        key: jax.Array, batch: Batch, state: State, index: jax.Array
    ) -> tuple[State, jax.Array, jax.Array]:
        state, log = evolution.generation(jax.random.fold_in(run_keys(key)[1], index), state)
        leader = nnx.merge(evolution.graphdef, _first(evolution.candidates(state)))
        value = _objective(config, leader.from_features(batch.features), batch)
        return state, value, log["step_size"]

    @functools.partial(jax.jit, donate_argnums=(1,))
    def advance(keys: jax.Array, progress: Progress, first: jax.Array, last: jax.Array) -> Progress:
        def body(index: jax.Array, now: Progress) -> Progress:
            states, objectives, steps = jax.vmap(generation, (0, 0, 0, None))(
                keys, now.watched, now.state, index
            )
            return Progress(states, now.watched, now.curve.at[index].set(objectives), steps)

        return jax.lax.fori_loop(first, last, body, progress)

    @jax.jit
    def leaders(progress: Progress) -> nnx.State:
        return jax.vmap(lambda state: _first(evolution.candidates(state)))(progress.state)

    # Winners are chosen and measured seed by seed: all held-out pairs at once take much memory.
    def winners(keys: jax.Array, progress: Progress) -> nnx.State:
        found = []
        for index, key in enumerate(keys):
            key = run_keys(key)[2]
            batch = observe(key, held_out(key))
            state = jax.tree.map(lambda x, i=index: x[i], progress.state)
            found.append(programs.winner(state, batch, key))
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)

    def measure(keys: jax.Array, networks: nnx.State) -> list[dict[str, float]]:
        metrics = []
        for index, key in enumerate(keys):
            pairs = held_out(run_keys(key)[3])
            batch = observe(jax.random.key(0), pairs)
            network = jax.tree.map(lambda x, i=index: x[i], networks)
            value, losses, gradients = jax.device_get(programs.measured(network, pairs, batch))
            row = {"objective": float(value)}
            if np.isfinite(losses).all():
                margin = MARGINS[config.margin]
                row |= rank_metrics(losses, batch.severities, batch.regimes, margin=margin)
                row |= _without_scale(gradient_metrics(gradients))
            metrics.append(row)
        return metrics

    return SeedRuns(init, advance, leaders, winners, held_out, measure)


class _Programs(NamedTuple):
    """What is compiled once for all mutations and selections.

    Attributes:
      sample: of `Evolution`.
      observe: of `Evolution`.
      winner: `(state, batch, key) -> network`, the candidate that is best on the pairs, and on
        what the key draws for other terms of the fitness.
      measured: `(network, pairs, batch)` to its objective, losses and logit gradients.
    """

    sample: Callable[[jax.Array], tuple[Pairs, ...]]
    observe: Callable[[jax.Array, tuple[Pairs, ...]], Batch]
    winner: Callable[[State, Batch, jax.Array], nnx.State]
    measured: Callable[..., tuple[jax.Array, jax.Array, GradientSample]]


@functools.lru_cache(maxsize=4)
def _programs(config: PretrainConfig, parts: tuple[Any, ...]) -> _Programs:
    del parts
    evolution, severity = make_evolution(config), SEVERITIES[config.severity]

    @jax.jit
    def winner(state: State, batch: Batch, key: jax.Array) -> nnx.State:
        candidates = evolution.candidates(state)
        best = jnp.argmin(evolution.final_score(candidates, batch, key))
        return jax.tree.map(lambda x: x[best], candidates)

    @jax.jit
    def measured(
        solution: nnx.State, pairs_of_counts: tuple[Pairs, ...], batch: Batch
    ) -> tuple[jax.Array, jax.Array, GradientSample]:
        network = nnx.merge(evolution.graphdef, solution)
        losses = network.from_features(batch.features)
        samples = [
            logit_gradients(lambda x, y: network(jax.nn.log_softmax(x), y), pairs, severity)
            for pairs in pairs_of_counts
        ]
        together = GradientSample(*(jnp.concatenate(x) for x in zip(*samples, strict=True)))
        return _objective(config, losses, batch), losses, together

    return _Programs(jax.jit(evolution.sample), jax.jit(evolution.observe), winner, measured)


def _objective(config: PretrainConfig, losses: jax.Array, batch: Batch) -> jax.Array:
    return margin_violation(
        losses,
        batch.severities,
        margin=MARGINS[config.margin],
        num_opponents=config.num_opponents,
    )


def _first(candidates: nnx.State) -> nnx.State:
    return jax.tree.map(lambda x: x[0], candidates)


def _without_scale(metrics: dict[str, float]) -> dict[str, float]:
    overall = metrics.pop("gradient_ratio", 0.0)
    return {
        name: value / overall if name.startswith("gradient_ratio/") else value
        for name, value in metrics.items()
        if overall or not name.startswith("gradient_ratio/")
    }
