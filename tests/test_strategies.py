"""Every strategy by name, through the one loop."""

import dataclasses
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import algorithms
from evosax.algorithms.distribution_based.snes import SNES
from evosax.problems import Problem

from edl_jax import STRATEGIES, ChaoticES, ChaoticSNES
from edl_jax.errors import ConfigError
from edl_jax.evolution.problems import RankingProblem, static_self
from edl_jax.strategies import MUTATIONS, StrategyConfig, build_strategy
from edl_jax.strategies.by_name import QUADRATIC, WITHOUT_STD
from tests.test_evolution import TINY, evolution_of


@dataclasses.dataclass(frozen=True)
class Sphere(Problem):
    """The distance from the origin: the strategies are under test, not the networks."""

    @static_self
    def sample(self, key):
        return RankingProblem(TINY).sample(key)

    @static_self
    def eval(self, key, solutions, state):
        leaves = jax.tree.leaves(solutions)
        fitness = sum(jnp.sum(x.reshape(x.shape[0], -1) ** 2, axis=-1) for x in leaves)
        return fitness, state, {}


def evolved(config, generations=30):
    """First and last best fitness of a run, its last state and the evolution."""
    config = dataclasses.replace(config, generations_per_chunk=generations)
    evolution = evolution_of(config, Sphere())
    state, rows = evolution.advance(evolution.init(jax.random.key(0)), generations)
    return [row["best_fitness"] for row in rows], state, evolution


# Their defaults are meant for other scales or populations: 30 generations of 16 show no progress.
SLOW = {"ARS", "ASEBO", "DiffusionEvolution", "ESMC", "GuidedES", "NoiseReuseES", "Open_ES", "PGPE"}
SLOW |= {"PersistentES", "RandomSearch", "SV_Open_ES", "iAMaLGaM_Full", "iAMaLGaM_Univariate"}


# One of each kind: our own, and evosax's that keep a population, a distribution or the best.
FIRST = ("ChaoticES", "ChaoticSNES", "SimpleGA", "CMA_ES", "SNES", "DifferentialEvolution")


@pytest.mark.parametrize(
    "name",
    [*FIRST, *(pytest.param(x, marks=pytest.mark.slow) for x in STRATEGIES if x not in FIRST)],
)
def test_every_strategy_runs_through_the_one_loop(name):
    config = dataclasses.replace(TINY, strategy=StrategyConfig(name))
    best, state, evolution = evolved(config, 120 if name == "SimpleGA" else 30)
    assert np.isfinite(best).all()
    assert np.isfinite(state.fitness).all()
    assert name in SLOW or min(best[-3:]) < 0.8 * best[0]
    candidates = evolution.candidates(state)
    for leaf in jax.tree.leaves(candidates):
        assert np.isfinite(leaf).all()
    # The best of all is found, though it was not asked for last.
    _, fitness = evolution.best(state, jax.random.key(1), 1)
    assert fitness <= min(best) * (1 + 1e-5)


def test_strategies_without_a_step_size_refuse_one():
    for name, kind in algorithms.items():
        config = dataclasses.replace(TINY, strategy=StrategyConfig(name))
        _, params = build_strategy(config, lambda key: jnp.zeros(16))
        accepted = inspect.signature(kind.__init__).parameters
        takes_none = not hasattr(params, "std_init") and "std_schedule" not in accepted
        assert takes_none == (name in WITHOUT_STD), kind
        if takes_none:
            with pytest.raises(ConfigError, match=r"std_init is 0\.5 .*leave it at 0\.1"):
                StrategyConfig(name, std_init=0.5)


def test_all_that_evosax_ships_can_be_named():
    assert set(algorithms) < set(STRATEGIES)


def test_those_of_quadratic_cost_are_known_and_refused_above_a_dimension():
    """The largest array of a state tells, at two dimensions."""

    def largest(name, num_dims):
        solution = jnp.zeros(num_dims)
        config = dataclasses.replace(TINY, strategy=StrategyConfig(name))
        algorithm, params = build_strategy(config, lambda key: solution)
        key = jax.random.key(0)
        state = jax.eval_shape(lambda: algorithm._init(key, params))
        work = jax.make_jaxpr(lambda s: algorithm._ask(key, s, params))(state)
        shapes = [x.shape for x in jax.tree.leaves(state)]
        shapes += [v.aval.shape for eqn in work.eqns for v in eqn.outvars]
        return max(int(np.prod(shape)) for shape in shapes)

    quadratic = {
        n for n in algorithms if n != "RandomSearch" and largest(n, 400) > 2.5 * largest(n, 200)
    }
    assert quadratic == set(QUADRATIC)
    for name in QUADRATIC:
        config = dataclasses.replace(TINY, strategy=StrategyConfig(name))
        with pytest.raises(ConfigError, match=f"{name}.*square of the 2049 parameters.*above 2048"):
            build_strategy(config, lambda key: jnp.zeros(2049))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("Open_ES", 15, "refuses a population_size of 15.*even"),
        ("SV_CMA_ES", 15, "two populations: give an even number"),
        ("DifferentialEvolution", 3, "population_size >= 4"),
    ],
)
def test_a_population_that_a_strategy_refuses_is_a_clear_error(name, size, message):
    config = dataclasses.replace(TINY, strategy=StrategyConfig(name), population_size=size)
    with pytest.raises(ConfigError, match=message):
        build_strategy(config, RankingProblem(config).sample)


def test_a_strategy_of_your_own():
    with mock.patch.dict(STRATEGIES):

        @STRATEGIES.register("quick_es")
        def quick_es(settings, solution):
            return ChaoticES(settings.population_size, solution, mutation="tent", elite_ratio=0.5)

        @STRATEGIES.register("my_es")
        def my_es(settings, solution, *, mutation, selection="comma"):
            assert (mutation, selection) == ("sine", "comma")  # what has a default is its own
            return ChaoticES(settings.population_size, solution, mutation=mutation)

        sine = dataclasses.replace(TINY, strategy=StrategyConfig("my_es", mutation="sine"))
        assert build_strategy(sine, lambda key: jnp.zeros(3))[0].mutation is MUTATIONS["sine"]
        best, state, _ = evolved(
            dataclasses.replace(TINY, strategy=StrategyConfig("quick_es", mutation="tent"))
        )
    assert best[-1] < best[0]
    assert state.strategy.orbit.shape[0] == 8


def test_std_init_and_schedules_reach_the_strategy():
    for name, change, expected in [
        ("CMA_ES", {}, 0.3),
        ("SimpleGA", {}, 0.3),
        ("ChaoticES", {}, 0.3),
        ("ChaoticES", {"step_size": "constant"}, 0.3),
    ]:
        config = dataclasses.replace(TINY, strategy=StrategyConfig(name, std_init=0.3, **change))
        algorithm, params = build_strategy(config, lambda key: jnp.zeros(3))
        state = algorithm._init(jax.random.key(0), params)
        assert jnp.mean(state.std) == pytest.approx(expected), (name, change)


@pytest.mark.parametrize(
    "mutation",
    [
        "logistic",
        *(pytest.param(x, marks=pytest.mark.slow) for x in MUTATIONS if x != "logistic"),
    ],
)
def test_chaotic_snes_finds_the_minimum_of_the_sphere_with_any_noise(mutation):
    strategy = ChaoticSNES(32, jnp.zeros(10), mutation=mutation)
    params = strategy.default_params

    def generation(state, key):
        key_ask, key_tell = jax.random.split(key)
        population, state = strategy.ask(key_ask, state, params)
        fitness = jnp.sum((population - 1) ** 2, axis=-1)
        state, _ = strategy.tell(key_tell, population, fitness, state, params)
        return state, jnp.min(fitness)

    def run(key):
        state = strategy.init(key, jnp.zeros(10), params)
        return jax.lax.scan(generation, state, jax.random.split(key, 200))

    state, best = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 3))
    assert (best[:, -1] < 1e-3).all()
    assert isinstance(strategy, SNES)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_chaotic_snes_differs_from_snes_by_its_noise_alone():
    """Told the same samples, both move alike."""
    mine, theirs = ChaoticSNES(16, jnp.zeros(4), mutation="gaussian"), SNES(16, jnp.zeros(4))
    params = mine.default_params
    state, other = (s.init(jax.random.key(0), jnp.zeros(4), params) for s in (mine, theirs))
    population, state = mine.ask(jax.random.key(1), state, params)
    fitness = jnp.sum((population - 1) ** 2, axis=-1)
    state, _ = mine.tell(jax.random.key(2), population, fitness, state, params)
    other, _ = theirs.tell(jax.random.key(2), population, fitness, other, params)
    np.testing.assert_array_equal(state.mean, other.mean)
    np.testing.assert_array_equal(state.std, other.std)
    # The orbit goes on from generation to generation.
    logistic = ChaoticSNES(16, jnp.zeros(4), mutation="logistic")
    before = logistic.init(jax.random.key(0), jnp.zeros(4), params)
    first, after = logistic.ask(jax.random.key(1), before, params)
    second, _ = logistic.ask(jax.random.key(2), after, params)
    # x after a step of the map is a function of x before: so are the noises.
    np.testing.assert_allclose(second, (1 - first**2) * 2**0.5, atol=1e-5)
