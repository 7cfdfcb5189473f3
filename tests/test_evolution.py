import dataclasses
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms.distribution_based.base import DistributionBasedAlgorithm
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm

from edl_jax import Mixture, PretrainConfig, TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError, EDLError
from edl_jax.evolution.problems import ORDER, RankingProblem, problem_of, static_self
from edl_jax.evolution.run import POPULATION, Evolution
from edl_jax.evolution.search import Search, without_failures
from edl_jax.objective import MARGINS, SEVERITIES, TaskConfig, margin_violation
from edl_jax.pairs import log_probabilities
from edl_jax.runs.devices import device_mesh
from edl_jax.strategies import StrategyConfig, build_strategy
from edl_jax.studies.sweep import with_fields
from edl_jax.training.optimizers import OptimizerConfig

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


def evolution_of(config, problem=None, **options):
    """What a configuration evolves, on one device unless told otherwise."""
    strategy, params = build_strategy(config, RankingProblem(config).sample)
    options = {"mesh": device_mesh(POPULATION, jax.devices()[:1]), **options}
    return Evolution(
        problem or problem_of(RankingProblem(config)),
        strategy,
        params,
        generations=config.generations,
        chunk=config.generations_per_chunk,
        **options,
    )


def network_of(population, index):
    return jax.tree.map(lambda x: x[index], population)


@pytest.fixture(scope="module")
def evolution():
    return evolution_of(TINY)


@pytest.fixture(scope="module")
def of_two_counts():
    return RankingProblem(dataclasses.replace(TINY, class_counts=(3, 5)))


def fresh(problem, size=16):
    return jax.vmap(problem.sample)(jax.random.split(jax.random.key(0), size))


def test_pairs_are_divided_among_the_class_counts(of_two_counts):
    pairs = of_two_counts.pairs(jax.random.key(0))
    assert [p.probabilities.shape for p in pairs] == [(33, 3), (32, 5)]


def test_violations_are_the_objective_of_each_network_alone(of_two_counts):
    population, pairs = fresh(of_two_counts), of_two_counts.pairs(jax.random.key(1))
    batch = of_two_counts.batch(jax.random.key(2), pairs)
    scores = of_two_counts.scores(population, batch)
    for index in (0, 7, 15):
        network = of_two_counts.network(network_of(population, index))
        losses = jnp.concatenate(
            [network(log_probabilities(p.probabilities), p.labels) for p in pairs]
        )
        severities = jnp.concatenate(
            [SEVERITIES["surprisal"](log_probabilities(p.probabilities), p.labels) for p in pairs]
        )
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(2), ORDER), 65)
        np.testing.assert_array_equal(batch.severities, severities[order])
        expected = margin_violation(
            losses[order],
            severities[order],
            margin=MARGINS["proportional"],
            num_opponents=TINY.num_opponents,
        )
        np.testing.assert_allclose(scores[index], expected, rtol=1e-4)


def test_pairs_are_fresh_in_every_generation_and_mixed_over_class_counts(of_two_counts):
    keys = jax.random.split(jax.random.key(0))
    one, other = (of_two_counts.batch(key, of_two_counts.pairs(key)) for key in keys)
    assert not np.array_equal(one.severities, other.severities)
    # With one severity for each class count, the order of the counts can be read off.
    counts = dataclasses.replace(
        of_two_counts.config, severity="of_count", class_counts=(3, 5), pairs_per_generation=64
    )
    told = RankingProblem(counts).batch(keys[0], RankingProblem(counts).pairs(keys[0])).severities
    assert sorted(np.unique(told).tolist()) == [3, 5]
    assert len(np.unique(told[:10])) == 2


@pytest.fixture(autouse=True)
def of_count():
    with mock.patch.dict(SEVERITIES):
        SEVERITIES.register("of_count")(lambda log_p, labels: 0 * labels + log_p.shape[-1])
        yield


def test_a_severity_registered_anew_is_another_problem():
    """Problems are compiled once for each that is not equal."""
    population, batch_key = fresh(RankingProblem(TINY), 2), jax.random.key(1)

    def fitness(severity):
        with mock.patch.dict(SEVERITIES):
            SEVERITIES.register("mine")(severity)
            problem = RankingProblem(dataclasses.replace(TINY, severity="mine"))
            assert problem == RankingProblem(dataclasses.replace(TINY, severity="mine"))
            return problem.eval(batch_key, population, problem.init(batch_key))[0]

    one = fitness(lambda log_p, labels: labels)
    assert not np.allclose(one, fitness(lambda log_p, labels: log_p[..., 0]))


def test_elites_meet_the_same_pairs_as_their_children(evolution):
    """A generation scores all networks in one call, on one batch."""
    state = evolution.begin(jax.random.key(0))
    state, _ = evolution.generation(state)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 1)
    state, log = evolution.generation(state)
    key_eval, _, _ = jax.random.split(key, 3)
    problem = evolution.problem
    expected = problem.scores(state.population, problem.draw(key_eval))
    np.testing.assert_allclose(state.fitness, expected, rtol=1e-5)
    np.testing.assert_array_equal(state.fitness, state.strategy.fitness)
    assert log["failed"] == 0
    assert log["best_fitness"] == state.fitness.min()


def test_the_first_population_is_fresh_and_breeds_from_its_best(evolution):
    state = evolution.begin(jax.random.key(0))
    first = jax.tree.leaves(state.population)
    scored, _ = evolution.generation(state)
    for a, b in zip(first, jax.tree.leaves(scored.population), strict=True):
        np.testing.assert_array_equal(a, b)
    after, _ = evolution.generation(scored)
    best = np.argsort(scored.fitness)[:4]
    for a, b in zip(first, jax.tree.leaves(after.population), strict=True):
        np.testing.assert_array_equal(a[best], b[:4])


@pytest.mark.parametrize(("networks", "pairs"), [(5, 64), (16, 65), (64, 100), (1, 65)])
def test_blocks_of_networks_and_pairs_change_nothing(monkeypatch, networks, pairs):
    config = dataclasses.replace(TINY, networks_at_a_time=networks)
    problem, other = RankingProblem(TINY), RankingProblem(config)
    population = fresh(problem)
    batch = problem.batch(jax.random.key(2), problem.pairs(jax.random.key(1)))
    expected = problem.scores(population, batch)
    monkeypatch.setattr("edl_jax.evolution.problems.PAIRS_AT_A_TIME", pairs)
    jax.clear_caches()
    np.testing.assert_allclose(other.scores(population, batch), expected, rtol=1e-5)


def test_chunks_of_any_length_reach_the_same_by_one_program(evolution):
    key, history = jax.random.key(7), {}
    for numbers in ((2, 2, 1), (1, 2, 2), (1, 1, 1, 1, 1)):
        state, rows = evolution.init(key), []
        for number in numbers:
            state, new = evolution.advance(state, number)
            rows += new
        assert int(state.generation) == 5
        assert int(state.strategy.generation_counter) == 4  # the first begins, none is told
        history[numbers] = rows, jax.device_get(state)
    assert evolution._advance._cache_size() == 1
    (rows, state), *others = history.values()
    assert [row["generation"] for row in rows] == list(range(5))
    for other, reached in others:
        assert other == rows
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(reached), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("base", [PopulationBasedAlgorithm, DistributionBasedAlgorithm])
def test_fresh_networks_and_the_state_are_drawn_by_different_keys(base):
    class Told(base):
        def __init__(self):
            self.population_size = 4

        def init(self, key, networks, *_):
            return jax.random.key_data(jnp.append(jax.random.split(key, 8), key)), networks

    key = jax.random.key(0)
    (drawn, networks), _ = Search(Told(), None, jax.random.key_data).init(key)
    for network in jnp.atleast_2d(networks):
        assert not (drawn == network).all(-1).any()
    assert not (drawn == jax.random.key_data(key)).all(-1).any()


def test_a_whole_run_vmaps_over_seeds(evolution):
    keys = jax.random.split(jax.random.key(0), 2)

    def run(key):
        def step(state, _):
            return evolution.generation(state)

        state, log = jax.lax.scan(step, evolution.begin(key), None, length=5)
        return evolution.candidates(state), log

    candidates, log = jax.jit(jax.vmap(run))(keys)
    assert log["best_fitness"].shape == (2, 5)
    alone, _ = jax.jit(run)(keys[1])
    for a, b in zip(jax.tree.leaves(candidates), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-5)


def first_bias(population):
    return jax.tree.leaves(population)[0].reshape(TINY.population_size, -1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Flawed(RankingProblem):
    """Those networks fail whose first bias is above 0: none at first, then half of the children."""

    @static_self
    def eval(self, key, solutions, state):
        fitness, state, metrics = super().eval(key, solutions, state)
        return jnp.where(first_bias(solutions) > 0, jnp.nan, fitness), state, metrics


@pytest.mark.parametrize("strategy", ["ChaoticES", "SimpleGA", "SNES"])
def test_failed_networks_are_counted_and_never_selected(strategy):
    config = dataclasses.replace(TINY, strategy=StrategyConfig(strategy), generations_per_chunk=4)
    evolution = evolution_of(config, Flawed(config))
    state, rows = evolution.advance(evolution.init(jax.random.key(1)), 4)
    assert sum(row["failed"] for row in rows) > 0
    assert np.isfinite(state.fitness).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.population))
    if hasattr(state.strategy, "population"):
        # Where a strategy keeps networks, those that failed are not among them.
        assert (first_bias(state.population) <= 0).all()


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


@dataclasses.dataclass(frozen=True)
class Broken(RankingProblem):
    @static_self
    def eval(self, key, solutions, state):
        return jnp.full((16,), jnp.nan), state, {}


def test_a_generation_in_which_all_fail_ends_with_an_error():
    evolution = evolution_of(TINY, Broken(TINY))
    with pytest.raises(EDLError, match="all 16 solutions of generation 0 failed"):
        evolution.advance(evolution.init(jax.random.key(0)), 2)


def test_the_best_is_the_candidate_that_is_best_on_fresh_draws(evolution):
    state, _ = evolution.advance(evolution.init(jax.random.key(0)), 2)
    found, fitness = evolution.best(state, jax.random.key(1), 3)
    problem, candidates = evolution.problem, evolution.candidates(state)
    assert jax.tree.leaves(candidates)[0].shape[0] == 5  # a quarter, and the best that was told
    means = np.mean(
        [
            problem.eval(jax.random.fold_in(jax.random.key(1), i), candidates, state.problem)[0]
            for i in range(3)
        ],
        axis=0,
    )
    assert fitness == pytest.approx(means.min(), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(candidates), strict=True):
        np.testing.assert_array_equal(a, b[means.argmin()])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"strategy": StrategyConfig("SNES")},
        {
            "task_weight": 1.0,
            "tasks": TaskConfig(num_tasks=2, train_examples=64, test_examples=64),
        },
    ],
    ids=lambda change: " ".join(change) or "plain",
)
def test_every_compiled_function_lowers_for_accelerators(platform, change):
    config = dataclasses.replace(TINY, **change)
    evolution, ranking, key = evolution_of(config), RankingProblem(config), jax.random.key(0)
    state = jax.eval_shape(evolution.begin, key)
    pairs = jax.eval_shape(ranking.pairs, key)
    batch = jax.eval_shape(ranking.batch, key, pairs)
    for function, arguments in [
        (evolution._advance, (state, jnp.int32(0))),
        (jax.jit(evolution.begin), (key,)),
        (jax.jit(ranking.pairs), (key,)),
        (jax.jit(ranking.batch), (key, pairs)),
        (jax.jit(ranking.scores), (state.population, batch)),
        (jax.jit(evolution.candidates), (state,)),
    ]:
        exported = jax.export.export(function, platforms=[platform])(*arguments)
        assert exported.platforms == (platform,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "mlp"}, "network is 'mlp'; expected one of class_agnostic, pair"),
        ({"activation": "sin"}, "activation is 'sin'"),
        ({"severity": "anger"}, "severity is 'anger'"),
        ({"margin": "wide"}, "margin is 'wide'"),
        ({"strategy.mutation": "no_such"}, "mutation is 'no_such'"),
        ({"strategy.name": "AnnealingES"}, "name is 'AnnealingES'; expected one of ChaoticES"),
        (
            {"strategy.selection": "roulette"},
            "is 'roulette'; expected one of plus, comma",
        ),
        (
            {"strategy.step_size": "cosine"},
            "is 'cosine'; expected one of success_rule, constant",
        ),
        (
            {"strategy.name": "SNES", "strategy.step_size": "constant"},
            "step_size is 'constant' with strategy",
        ),
        (
            {"strategy.name": "ChaoticSNES", "strategy.elite_ratio": 0.5},
            "elite_ratio is 0.5 with strategy",
        ),
        ({"strategy.elite_ratio": 1.0}, r"elite_ratio is 1\.0"),
        (
            {"strategy.name": "SimpleGA", "strategy.mutation": "gaussian"},
            "mutation is 'gaussian' with strategy 'Si",
        ),
        ({"hidden": (0,)}, r"hidden is \(0,\); expected a tuple .each a whole number, at least 1"),
        ({"class_counts": ()}, r"class_counts is \(\); .* not empty"),
        ({"class_counts": (1, 2)}, "class_counts is"),
        (
            {"class_counts": (3, 3)},
            r"class_counts is \(3, 3\); expected a tuple .* all different",
        ),
        ({"network": "pair"}, "exactly one class count"),
        ({"population_size": 1}, "population_size is 1"),
        ({"strategy.elite_ratio": 1.5}, r"elite_ratio is 1\.5"),
        ({"strategy.std_init": 0.0}, r"std_init is 0\.0; expected a finite number, more than 0"),
        ({"strategy.std_init": float("nan")}, "std_init is nan"),
        ({"pairs_per_generation": 3}, "pairs_per_generation is 3"),
        ({"num_opponents": 4096}, "num_opponents is 4096"),
        ({"generations": 2.5}, r"generations is 2\.5"),
        ({"generations": True}, "generations is True"),
        ({"class_counts": (2.5,)}, "class_counts is"),
        ({"class_counts": 10}, "class_counts is 10; expected a tuple .each a whole number"),
        ({"hidden": 16}, "hidden is 16; expected a tuple .each a whole number"),
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
        with_fields(PretrainConfig(), change)


def test_what_means_the_same_is_the_same_configuration():
    """Lists, NumPy's numbers and paths become what a run folder's JSON and `jit` can take."""
    given = PretrainConfig(
        class_counts=[np.int64(3)], strategy=StrategyConfig(std_init=np.float32(0.5)), hidden=[4]
    )
    assert given == PretrainConfig(
        class_counts=(3,), strategy=StrategyConfig(std_init=0.5), hidden=(4,)
    )
    assert hash(given) == hash(
        PretrainConfig(class_counts=(3,), strategy=StrategyConfig(std_init=0.5), hidden=(4,))
    )
    assert type(given.class_counts[0]) is int
    assert TrainConfig(data=DataConfig(data_dir=Path("data"))).data.data_dir == "data"
    momentum = TrainConfig(
        optimizer=OptimizerConfig(options={"momentum": np.float32(0.5)})
    ).optimizer.options
    assert momentum == {"momentum": 0.5}
    assert type(momentum["momentum"]) is float
