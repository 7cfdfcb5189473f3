import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edl_jax import Mixture, PretrainConfig
from edl_jax.errors import ConfigError, EDLError
from edl_jax.evolution import make_evolution, make_run, run_keys
from edl_jax.evolution.loop import evolve, make_chunk
from edl_jax.pairs import log_probabilities
from edl_jax.ranking import MARGINS, SEVERITIES, margin_violation

TINY = PretrainConfig(
    hidden=(4,),
    class_counts=(3, 5),
    mixture=Mixture(sparse=0),  # its Gamma draws take longest to compile
    population_size=16,
    pairs_per_generation=65,
    generations=5,
    generations_per_chunk=2,
    held_out_pairs=130,
    networks_at_a_time=4,
)


@pytest.fixture(scope="module")
def evolution():
    return make_evolution(TINY)


def test_sample_splits_the_pairs_among_the_class_counts(evolution):
    pairs = evolution.sample(jax.random.key(0))
    assert [p.probabilities.shape for p in pairs] == [(33, 3), (32, 5)]


def test_score_is_the_objective_of_each_network_alone(evolution):
    state = evolution.init(jax.random.key(0))
    population = evolution.strategy.get_population(state)
    pairs = evolution.sample(jax.random.key(1))
    batch = evolution.observe(jax.random.key(2), pairs)
    scores = evolution.score(population, batch)
    for index in (0, 7, 15):
        network = nnx.merge(evolution.graphdef, jax.tree.map(lambda x, i=index: x[i], population))
        losses = jnp.concatenate(
            [network(log_probabilities(p.probabilities), p.labels) for p in pairs]
        )
        severities = jnp.concatenate(
            [SEVERITIES["surprisal"](log_probabilities(p.probabilities), p.labels) for p in pairs]
        )
        order = jax.random.permutation(jax.random.key(2), 65)
        np.testing.assert_array_equal(batch.severities, severities[order])
        expected = margin_violation(
            losses[order],
            severities[order],
            margin=MARGINS["proportional"],
            num_opponents=TINY.num_opponents,
        )
        np.testing.assert_allclose(scores[index], expected, rtol=1e-4)


def test_pairs_are_fresh_in_every_generation_and_mixed_over_class_counts(evolution):
    batches = [
        evolution.observe(key, evolution.sample(key)) for key in jax.random.split(jax.random.key(0))
    ]
    assert not np.array_equal(batches[0].severities, batches[1].severities)
    assert sorted(np.unique(batches[0].class_counts).tolist()) == [3, 5]
    assert len(np.unique(batches[0].class_counts[:10])) == 2


def test_elites_meet_the_same_pairs_as_their_children(evolution, monkeypatch):
    """A generation scores all networks in one call, on one batch."""
    state = evolution.init(jax.random.key(0))
    key = jax.random.key(3)
    after, log = evolution.generation(key, state)
    key_sample, key_observe, _, _ = jax.random.split(key, 4)
    batch = evolution.observe(key_observe, evolution.sample(key_sample))
    population = evolution.strategy.get_population(after)
    np.testing.assert_allclose(after.fitness, evolution.score(population, batch), rtol=1e-5)
    assert log["failed"] == 0
    assert log["best_fitness"] == after.fitness.min()


def test_one_program_serves_every_chunk(evolution):
    chunk = make_chunk(TINY, evolution)
    state = evolution.init(jax.random.key(0))
    for first in (0, 2, 4):
        state, log = chunk(jax.random.key(1), state, jnp.int32(first))
    assert chunk._cache_size() == 1
    assert int(state.generation_counter) == 5  # the sixth generation is skipped
    assert log["best_fitness"].shape == (2,)


def test_chunks_reach_what_one_scan_reaches(evolution):
    key = jax.random.key(7)
    key_init, key_generations, _, _ = run_keys(key)
    monitor = evolution.observe(jax.random.key(9), evolution.sample(jax.random.key(9)))
    init = jax.jit(evolution.init)
    state, rows = evolve(TINY, evolution, key_generations, init(key_init), monitor)
    elites, log = jax.jit(make_run(TINY))(key)
    for a, b in zip(jax.tree.leaves(evolution.elites(state)), jax.tree.leaves(elites), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([row["best_fitness"] for row in rows], log["best_fitness"], 1e-4)
    assert [row["generation"] for row in rows] == list(range(5))
    assert [row["held_out_accuracy"] is not None for row in rows] == [False, True] * 2 + [True]


def test_a_whole_run_vmaps_over_seeds():
    keys = jax.random.split(jax.random.key(0), 2)
    elites, log = jax.jit(jax.vmap(make_run(TINY)))(keys)
    assert log["best_fitness"].shape == (2, 5)
    alone, _ = jax.jit(make_run(TINY))(keys[1])
    for a, b in zip(jax.tree.leaves(elites), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-5)


def test_a_generation_in_which_all_fail_ends_with_an_error(evolution):
    def broken(key, state):
        state, log = evolution.generation(key, state)
        return state, log | {"failed": jnp.int32(16), "best_fitness": jnp.inf}

    monitor = evolution.observe(jax.random.key(9), evolution.sample(jax.random.key(9)))
    state = jax.jit(evolution.init)(jax.random.key(0))
    with pytest.raises(EDLError, match="all 16 networks of generation 0 failed"):
        evolve(TINY, evolution._replace(generation=broken), jax.random.key(0), state, monitor)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_chunk_lowers_for_accelerators(evolution, platform):
    arguments = (jax.random.key(0), evolution.init(jax.random.key(0)), jnp.int32(0))
    chunk = make_chunk(TINY, evolution)
    assert jax.export.export(chunk, platforms=[platform])(*arguments).platforms == (platform,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "mlp"}, "network is 'mlp'; expected one of class_agnostic, pair"),
        ({"activation": "sin"}, "activation is 'sin'"),
        ({"severity": "anger"}, "severity is 'anger'"),
        ({"margin": "wide"}, "margin is 'wide'"),
        ({"mutation": "henon"}, "mutation is 'henon'"),
        ({"hidden": (0,)}, "hidden is"),
        ({"class_counts": ()}, "class_counts is"),
        ({"class_counts": (1, 2)}, "class_counts is"),
        ({"network": "pair"}, "exactly one class count"),
        ({"population_size": 1}, "population_size is 1"),
        ({"elite_ratio": 1.5}, r"elite_ratio is 1\.5"),
        ({"population_size": 4, "elite_ratio": 0.1}, "at least one elite"),
        ({"std_init": 0.0}, r"std_init is 0\.0; expected a finite number, more than 0"),
        ({"std_init": float("nan")}, "std_init is nan"),
        ({"pairs_per_generation": 3}, "pairs_per_generation is 3"),
        ({"num_opponents": 4096}, "num_opponents is 4096"),
        ({"generations": 2.5}, r"generations is 2\.5"),
        ({"generations": True}, "generations is True"),
        ({"class_counts": (2.5,)}, "class_counts is"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"generations": 0}, "generations is 0"),
        ({"generations_per_chunk": 0}, "generations_per_chunk is 0"),
        ({"held_out_pairs": 1}, "held_out_pairs is 1"),
        ({"networks_at_a_time": 0}, "networks_at_a_time is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PretrainConfig(), **change)
