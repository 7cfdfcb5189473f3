"""Selection under noise (docs/method.md, section 5)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from edl_jax.evolution import make_evolution, run_keys
from tests.test_evolution import TINY


def test_elites_scored_again_beat_best_ever_selection_on_held_out_fitness():
    """With few pairs the best score ever is a lucky one; 64 paired runs, a one-sided test."""
    config = dataclasses.replace(
        TINY, pairs_per_generation=24, num_opponents=2, generations=40, population_size=32
    )
    evolution = make_evolution(config)
    careful = make_evolution(dataclasses.replace(config, pairs_per_generation=2000))
    held_out = careful.observe(jax.random.key(99), careful.sample(jax.random.key(98)))

    def run(key):
        key_init, key_run = run_keys(key)[:2]
        state, _ = jax.lax.scan(
            lambda state, index: evolution.generation(jax.random.fold_in(key_run, index), state),
            evolution.init(key_init),
            jnp.arange(config.generations),
        )
        again = jax.tree.map(lambda x: x[:1], evolution.candidates(state))
        # evosax keeps the best score that it was ever told, with its solution.
        ever = evolution.strategy._unravel_solution(state.strategy.best_solution)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), again, ever)
        return careful.score(both, held_out), state.strategy.best_fitness

    scores, told = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 64))
    again, ever = np.asarray(scores, np.float64).T
    result = stats.ttest_rel(again, ever, alternative="less")
    assert result.pvalue < 0.01
    # The lucky score was luck: held out, its network is much worse than it was told to be.
    assert (ever > told).mean() > 0.9
