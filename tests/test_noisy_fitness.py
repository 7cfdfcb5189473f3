"""Selection under noise (docs/method.md, section 5)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from edl_jax.evolution.problems import RankingProblem
from tests.test_evolution import TINY, evolution_of


@pytest.mark.slow
def test_elites_scored_again_beat_best_ever_selection_on_held_out_fitness():
    """With few pairs the best score ever is a lucky one; 64 paired runs, a one-sided test."""
    config = dataclasses.replace(
        TINY, pairs_per_generation=24, num_opponents=2, generations=40, population_size=32
    )
    evolution = evolution_of(config)
    careful = RankingProblem(dataclasses.replace(config, pairs_per_generation=2000))
    held_out = careful.batch(jax.random.key(99), careful.pairs(jax.random.key(98)))

    def run(key):
        def step(state, _):
            return evolution.generation(state)

        state, _ = jax.lax.scan(step, evolution.begin(key), None, length=config.generations)
        again = jax.tree.map(lambda x: x[:1], evolution.candidates(state))
        # evosax keeps the best score that it was ever told, with its solution.
        ever = evolution.search.kept(state.strategy)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), again, ever)
        return careful.scores(both, held_out), state.strategy.best_fitness

    scores, told = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 64))
    again, ever = np.asarray(scores, np.float64).T
    result = stats.ttest_rel(again, ever, alternative="less")
    assert result.pvalue < 0.01
    # The lucky score was luck: held out, its network is much worse than it was told to be.
    assert (ever > told).mean() > 0.9
