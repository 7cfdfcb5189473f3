import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms.distribution_based.base import DistributionBasedAlgorithm
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from flax import nnx

from edl_jax import Mixture, PretrainConfig, TrainConfig
from edl_jax.errors import ConfigError, EDLError
from edl_jax.evolution import (
    SlopeConfig,
    engine,
    make_evolution,
    make_run,
    restarts,
    run_keys,
)
from edl_jax.evolution.loop import evolve, make_chunk
from edl_jax.evolution.monitor import make_monitor
from edl_jax.evolution.scoring import make_score, without_failures
from edl_jax.evolution.search import make_search
from edl_jax.evolution.sharding import AXIS
from edl_jax.objective import MARGINS, SEVERITIES, TaskConfig, margin_violation, rank_metrics
from edl_jax.pairs import REGIMES, log_probabilities
from edl_jax.runs.devices import device_mesh, to_every_device

TINY = PretrainConfig(
    hidden=(4,),
    class_counts=(5,),  # each is compiled on its own
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


@pytest.fixture(scope="module")
def of_two_counts():
    return make_evolution(dataclasses.replace(TINY, class_counts=(3, 5)))


def test_sample_splits_the_pairs_among_the_class_counts(of_two_counts):
    pairs = of_two_counts.sample(jax.random.key(0))
    assert [p.probabilities.shape for p in pairs] == [(33, 3), (32, 5)]


def test_score_is_the_objective_of_each_network_alone(of_two_counts):
    population = of_two_counts.init(jax.random.key(0)).population
    pairs = of_two_counts.sample(jax.random.key(1))
    batch = of_two_counts.observe(jax.random.key(2), pairs)
    scores = of_two_counts.score(population, batch)
    for index in (0, 7, 15):
        network = nnx.merge(
            of_two_counts.graphdef, jax.tree.map(lambda x, i=index: x[i], population)
        )
        losses = jnp.concatenate(
            [network(log_probabilities(p.probabilities), p.labels) for p in pairs]
        )
        severities = jnp.concatenate(
            [SEVERITIES["surprisal"](log_probabilities(p.probabilities), p.labels) for p in pairs]
        )
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(2), engine.ORDER), 65)
        np.testing.assert_array_equal(batch.severities, severities[order])
        expected = margin_violation(
            losses[order],
            severities[order],
            margin=MARGINS["proportional"],
            num_opponents=TINY.num_opponents,
        )
        np.testing.assert_allclose(scores[index], expected, rtol=1e-4)


def test_pairs_are_fresh_in_every_generation_and_mixed_over_class_counts(of_two_counts):
    batches = [
        of_two_counts.observe(key, of_two_counts.sample(key))
        for key in jax.random.split(jax.random.key(0))
    ]
    assert not np.array_equal(batches[0].severities, batches[1].severities)
    assert sorted(np.unique(batches[0].class_counts).tolist()) == [3, 5]
    assert len(np.unique(batches[0].class_counts[:10])) == 2


def test_elites_meet_the_same_pairs_as_their_children(evolution):
    """A generation scores all networks in one call, on one batch."""
    state = evolution.init(jax.random.key(0))
    for key in jax.random.split(jax.random.key(3)):
        state, log = evolution.generation(key, state)
    _, key_sample, key_observe, _, _ = jax.random.split(key, 5)
    batch = evolution.observe(key_observe, evolution.sample(key_sample))
    np.testing.assert_allclose(state.fitness, evolution.score(state.population, batch), rtol=1e-5)
    np.testing.assert_array_equal(state.fitness, state.strategy.fitness)
    assert log["failed"] == 0
    assert log["best_fitness"] == state.fitness.min()


def test_the_first_population_is_fresh_and_breeds_from_its_best(evolution):
    state = evolution.init(jax.random.key(0))
    fresh = jax.tree.leaves(state.population)
    scored, _ = evolution.generation(jax.random.key(1), state)
    for a, b in zip(fresh, jax.tree.leaves(scored.population), strict=True):
        np.testing.assert_array_equal(a, b)
    after, _ = evolution.generation(jax.random.key(2), scored)
    best = np.argsort(scored.fitness)[:4]
    for a, b in zip(fresh, jax.tree.leaves(after.population), strict=True):
        np.testing.assert_array_equal(a[best], b[:4])


@pytest.mark.parametrize("pairs_at_a_time", [64, 65, 100])
def test_blocks_of_pairs_change_nothing(evolution, pairs_at_a_time):
    config = dataclasses.replace(TINY, pairs_at_a_time=pairs_at_a_time, networks_at_a_time=5)
    population = evolution.init(jax.random.key(0)).population
    batch = evolution.observe(jax.random.key(2), evolution.sample(jax.random.key(1)))
    np.testing.assert_allclose(
        make_evolution(config).score(population, batch),
        evolution.score(population, batch),
        rtol=1e-5,
    )


def test_one_program_serves_every_chunk(evolution):
    chunk = make_chunk(TINY.generations_per_chunk, evolution, device_mesh(AXIS))
    state = to_every_device(evolution.init(jax.random.key(0)), device_mesh(AXIS))
    for first, end in ((0, 2), (2, 4), (4, 5)):
        state, log = chunk(jax.random.key(1), state, jnp.int32(first), jnp.int32(end))
    assert chunk._cache_size() == 1
    assert int(state.strategy.generation_counter) == 4  # the first generation begins, none is told
    assert log["best_fitness"].shape == (2,)


def test_blocks_are_no_larger_than_the_population():
    config = dataclasses.replace(TINY, slope=SlopeConfig(descent=1.0, pairs=20))
    programs = []
    for at_a_time in (16, 64):
        made = make_evolution(dataclasses.replace(config, networks_at_a_time=at_a_time))
        state = jax.eval_shape(made.init, jax.random.key(0))
        programs.append(jax.jit(made.generation).lower(jax.random.key(1), state).as_text())
    assert programs[0] == programs[1]


@pytest.mark.parametrize("base", [PopulationBasedAlgorithm, DistributionBasedAlgorithm])
def test_fresh_networks_and_the_state_are_drawn_by_different_keys(base):
    class Told(base):
        def __init__(self):
            self.population_size = 4

        def init(self, key, networks, *_):
            return jax.random.key_data(jnp.append(jax.random.split(key, 8), key)), networks

    key = jax.random.key(0)
    (drawn, networks), _ = make_search(Told(), None, jax.random.key_data).begin(key)
    for fresh in jnp.atleast_2d(networks):
        assert not (drawn == fresh).all(-1).any()
    assert not (drawn == jax.random.key_data(key)).all(-1).any()


def run_evolve(config, evolution, key):
    keys = run_keys(key)[:2]
    monitor = make_monitor(config, evolution, jax.random.key(9))
    return evolve(config, evolution, device_mesh(AXIS), keys, monitor)


def test_chunks_reach_what_one_scan_reaches(evolution):
    key = jax.random.key(7)
    state, rows, held_out = run_evolve(TINY, evolution, key)
    candidates, log = jax.jit(make_run(TINY))(key)
    mine = jax.tree.leaves(evolution.candidates(state))
    for a, b in zip(mine, jax.tree.leaves(candidates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([row["best_fitness"] for row in rows], log["best_fitness"], 1e-4)
    assert [row["generation"] for row in rows] == list(range(5))
    assert [row["generation"] for row in held_out] == [1, 3, 4]


def test_every_metric_is_watched_on_held_out_pairs_overall_and_by_regime(evolution):
    network = evolution.strategy._unravel_solution(jnp.zeros(evolution.strategy.num_dims))
    leader = jax.tree.map(lambda x: x + 0.3, network)
    metrics = make_monitor(TINY, evolution, jax.random.key(9))(leader)
    names = ["pairwise_accuracy", "kendall_tau", "spearman_rho", "violated_margins"]
    for name in [*names, "descent_rate", "gradient_ratio"]:
        assert np.isfinite(metrics[name])
        regimes = {found.split("/")[1] for found in metrics if found.startswith(f"{name}/")}
        assert regimes >= set(REGIMES) - {"sparse"}, name
    key = jax.random.key(9)
    pairs = evolution.sample(key)
    batch = evolution.observe(key, pairs)
    losses = nnx.merge(evolution.graphdef, leader).from_features(batch.features)
    expected = rank_metrics(losses, batch.severities, batch.regimes, margin=MARGINS["proportional"])
    assert metrics["kendall_tau"] == pytest.approx(expected["kendall_tau"])


def test_a_whole_run_vmaps_over_seeds():
    keys = jax.random.split(jax.random.key(0), 2)
    candidates, log = jax.jit(jax.vmap(make_run(TINY)))(keys)
    assert log["best_fitness"].shape == (2, 5)
    alone, _ = jax.jit(make_run(TINY))(keys[1])
    for a, b in zip(jax.tree.leaves(candidates), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-5)


def test_failed_networks_are_counted_and_never_selected(monkeypatch):
    """Those networks fail whose first bias is above 0: none at first, then half of the children."""

    def first_bias(population):
        return jax.tree.leaves(population)[0].reshape(TINY.population_size, -1)[:, 0]

    def flawed(*args, **kwargs):
        score = make_score(*args, **kwargs)

        def scored(population, batch):
            return jnp.where(first_bias(population) > 0, jnp.nan, score(population, batch))

        return scored

    monkeypatch.setattr(engine, "make_score", flawed)
    for strategy in ("ChaoticES", "SimpleGA", "SNES"):
        evolution = make_evolution(dataclasses.replace(TINY, strategy=strategy))
        state = jax.jit(evolution.init)(jax.random.key(0))
        generation, failed = jax.jit(evolution.generation), 0
        for key in jax.random.split(jax.random.key(1), 4):
            state, log = generation(key, state)
            failed += int(log["failed"])
            assert np.isfinite(state.fitness).all(), strategy
        assert failed > 0, strategy
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.population)), strategy
        if hasattr(state.strategy, "population"):
            # Where a strategy keeps networks, those that failed are not among them.
            assert (first_bias(state.population) <= 0).all(), strategy


def test_without_failures_leaves_nothing_that_failed():
    population = {"w": jnp.arange(10.0).reshape(5, 2)}
    fitness = jnp.asarray([3.0, jnp.nan, 1.0, jnp.inf, -jnp.inf])
    mended, penalised = without_failures(population, fitness)
    np.testing.assert_array_equal(mended["w"][:, 0], [0, 0, 4, 0, 0])
    np.testing.assert_array_equal(penalised, [3, 3, 1, 3, 3])
    untouched = without_failures(population, jnp.arange(5.0))
    np.testing.assert_array_equal(untouched[0]["w"], population["w"])
    np.testing.assert_array_equal(untouched[1], jnp.arange(5.0))
    failed = without_failures(population, fitness[jnp.asarray([1, 3, 1, 3, 4])])
    np.testing.assert_array_equal(failed[0]["w"], population["w"])
    np.testing.assert_array_equal(failed[1], [np.nan, np.inf, np.nan, np.inf, -np.inf])


def test_a_generation_in_which_all_fail_ends_with_an_error(monkeypatch):
    def broken(*args, **kwargs):
        return lambda population, batch: jnp.full((16,), jnp.nan)

    monkeypatch.setattr(engine, "make_score", broken)
    with pytest.raises(EDLError, match="all 16 networks of generation 0 failed"):
        run_evolve(TINY, make_evolution(TINY), jax.random.key(0))


def restarts_after(bests, patience=2):
    """Whether evolution begins anew after each generation, given its best fitness."""
    state, begin, found = restarts.no_restarts(jnp.zeros(())), True, []
    for best in bests:
        state, begin = restarts.update(
            state, jnp.asarray(best), jnp.zeros(()), jnp.asarray(begin), patience
        )
        found.append(bool(begin))
    assert int(state.count) == sum(found)
    return found


def test_an_attempt_ends_when_its_smoothed_best_has_not_improved_by_1_percent():
    assert restarts_after([1.0, 1.0, 1.0, 5.0, 5.0, 5.0]) == [False, False, True] * 2
    # Smoothed, 0.94 is 0.988, an improvement; 0.96 is 0.992, and 0.95 after it 0.9836.
    assert restarts_after([1.0, 1.0, 0.94, 1.0, 1.0]) == [False, False, False, False, True]
    assert restarts_after([1.0, 1.0, 0.96]) == [False, False, True]
    assert restarts_after([1.0, 0.96, 0.95, 0.988]) == [False, False, False, False]
    assert not any(restarts_after([0.0] * 5))  # there is nothing better


def test_leaders_of_the_last_eight_attempts_are_kept():
    state, begin = restarts.no_restarts(jnp.zeros(2)), True
    for generation in range(20):  # two generations make an attempt
        leader = jnp.full(2, generation // 2, jnp.float32)
        state, begin = restarts.update(state, jnp.ones(()), leader, jnp.asarray(begin), 1)
        if generation == 1:  # the first attempt's leader has all places
            assert (state.champions == 0).all()
    assert state.champions.tolist() == [[x, x] for x in (8, 9, 2, 3, 4, 5, 6, 7)]


def test_evolution_begins_anew_where_it_stagnates_and_keeps_the_leaders():
    config = dataclasses.replace(TINY, restart_after=2)
    evolution = make_evolution(config)
    state, generation = jax.jit(evolution.init)(jax.random.key(0)), jax.jit(evolution.generation)
    counts, begins, leaders = [], [], []
    for index in range(200):
        state, log = generation(jax.random.fold_in(jax.random.key(1), index), state)
        counts.append(int(log["restarts"]))
        begins.append(bool(state.begin))
        best = int(np.argmin(state.fitness))
        leaders.append(jax.tree.map(lambda x, i=best: x[i], state.population))
        if counts[-1] == 2:
            break
    assert counts[-1] == sum(begins) == 2
    restarted = begins.index(True)
    kept = jax.tree.map(lambda x: x[-8], evolution.candidates(state))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(leaders[restarted]), strict=True):
        np.testing.assert_array_equal(a, b)
    never = make_evolution(dataclasses.replace(config, restart_after=0))
    assert never.init(jax.random.key(0)).restarts is None


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"restart_after": 5, "strategy": "SNES"},
        {"kernel": "pallas"},
        {
            "slope": SlopeConfig(1.0, 1.0, 1.0, pairs=20),
            "task_weight": 1.0,
            "tasks": TaskConfig(num_tasks=2, train_examples=64, test_examples=64),
        },
    ],
    ids=lambda change: " ".join(change) or "plain",
)
def test_every_compiled_function_lowers_for_accelerators(platform, change):
    config = dataclasses.replace(TINY, **change)
    if config.kernel == "pallas" and platform == "cuda" and jax.__version_info__ >= (0, 12):
        pytest.skip("from jax 0.12 on, Pallas asks Triton kernels for the GPU itself to lower")
    evolution = make_evolution(config)
    key, index = jax.random.key(0), jnp.int32(0)
    state = jax.eval_shape(evolution.init, key)
    pairs = jax.eval_shape(evolution.sample, key)
    batch = jax.eval_shape(evolution.observe, key, pairs)
    chunk = make_chunk(config.generations_per_chunk, evolution, device_mesh(AXIS))
    for function, arguments in [
        (chunk, (key, state, index, index)),
        (jax.jit(evolution.init), (key,)),
        (jax.jit(evolution.sample), (key,)),
        (jax.jit(evolution.observe), (key, pairs)),
        (jax.jit(evolution.score), (state.population, batch)),
        (jax.jit(evolution.candidates), (state,)),
    ]:
        # Only a promise for files kept over versions of XLA, which is not asked for.
        unkept = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
        export = jax.export.export(function, platforms=[platform], disabled_checks=unkept)
        exported = export(*arguments)
        assert exported.platforms == (platform,)
        if function is chunk:
            custom = {"cuda": "triton", "tpu": "tpu_custom_call"}[platform]
            assert (custom in exported.mlir_module()) == (config.kernel == "pallas")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "mlp"}, "network is 'mlp'; expected one of class_agnostic, pair"),
        ({"activation": "sin"}, "activation is 'sin'"),
        ({"severity": "anger"}, "severity is 'anger'"),
        ({"margin": "wide"}, "margin is 'wide'"),
        ({"mutation": "no_such"}, "mutation is 'no_such'"),
        ({"strategy": "AnnealingES"}, "strategy is 'AnnealingES'; expected one of ChaoticES"),
        ({"selection": "roulette"}, "selection is 'roulette'; expected one of plus, comma"),
        ({"step_size": "linear"}, "step_size is 'linear'"),
        ({"strategy": "CMA_ES", "step_size": "cosine"}, "in its own way"),
        ({"strategy": "SNES", "step_size": "self_adaptive"}, "in its own way"),
        (
            {"strategy": "SimpleGA", "mutation": "gaussian"},
            "mutation is 'gaussian' with strategy 'Si",
        ),
        ({"strategy": "ChaoticSNES", "use_crossover": True}, "use_crossover is True with"),
        ({"std_final": 0.0}, r"std_final is 0\.0"),
        ({"restart_after": -1}, "restart_after is -1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"pairs_at_a_time": 0}, "pairs_at_a_time is 0"),
        ({"hidden": (0,)}, r"hidden is \(0,\); expected a tuple of whole numbers, each at least 1"),
        ({"class_counts": ()}, "class_counts is empty"),
        ({"class_counts": (1, 2)}, "class_counts is"),
        (
            {"class_counts": (3, 3)},
            r"class_counts is \(3, 3\); expected a tuple of different values",
        ),
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
        ({"class_counts": 10}, "class_counts is 10; expected a tuple of whole numbers"),
        ({"hidden": 16}, r"hidden is 16; expected a tuple of whole numbers, such as \(1,\)"),
        ({"std_final": 0.1}, "std_final is 0.1 with step_size 'auto', which has no last value"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"generations": 0}, "generations is 0"),
        ({"generations_per_chunk": 0}, "generations_per_chunk is 0"),
        ({"held_out_pairs": 1}, "held_out_pairs is 1"),
        ({"kernel": "cuda"}, "kernel is 'cuda'; expected one of xla, pallas"),
        (
            {"kernel": "pallas", "hidden": (16, 129)},
            "129 inputs; the fused kernel holds at most 128",
        ),
        ({"kernel": "pallas", "network": "pair", "class_counts": (65,)}, "130 inputs"),
        ({"networks_at_a_time": 0}, "networks_at_a_time is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PretrainConfig(), **change)


def test_what_means_the_same_is_the_same_configuration():
    """Lists, NumPy's numbers and paths become what a run folder's JSON and `jit` can take."""
    given = PretrainConfig(class_counts=[np.int64(3)], std_init=np.float32(0.5), hidden=[4])
    assert given == PretrainConfig(class_counts=(3,), std_init=0.5, hidden=(4,))
    assert hash(given) == hash(PretrainConfig(class_counts=(3,), std_init=0.5, hidden=(4,)))
    assert type(given.class_counts[0]) is int
    assert TrainConfig(data_dir=Path("data")).data_dir == "data"
    momentum = TrainConfig(optimizer_options={"momentum": np.float32(0.5)}).optimizer_options
    assert momentum == {"momentum": 0.5}
    assert type(momentum["momentum"]) is float
