import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm

from edl_jax import ChaoticES
from edl_jax.errors import ConfigError
from edl_jax.strategies import MUTATIONS
from edl_jax.strategies.chaotic_es import adapt_std, select

DIMENSIONS, POPULATION = 10, 64


def sphere(population):
    return jnp.sum(population**2, axis=-1)


def minimise(strategy: ChaoticES, params, key, fitness_fn=sphere, generations=150):
    """A plain evosax ask-evaluate-tell loop, scanned."""
    key_init, key_population, key_loop = jax.random.split(key, 3)
    population = jax.random.normal(key_population, (POPULATION, DIMENSIONS))
    state = strategy.init(key_init, population, fitness_fn(population), params)

    def generation(state, key):
        key_ask, key_tell = jax.random.split(key)
        population, state = strategy.ask(key_ask, state, params)
        state, metrics = strategy.tell(key_tell, population, fitness_fn(population), state, params)
        return state, metrics["best_fitness"]

    return jax.lax.scan(generation, state, jax.random.split(key_loop, generations))


VARIANTS = {
    "comma": {"selection": "comma", "elite_ratio": 0.2},
    "schedule": {"std_schedule": optax.exponential_decay(0.3, 150, 1e-3)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_reaches_the_sphere_minimum(variant):
    strategy = ChaoticES(POPULATION, jnp.zeros(DIMENSIONS), **VARIANTS[variant])
    params = strategy.default_params
    run = jax.jit(jax.vmap(lambda key: minimise(strategy, params, key)))
    state, best = run(jax.random.split(jax.random.key(0), 5))
    assert (best[:, -1] < 1e-3).all()
    assert strategy.num_children == POPULATION - (0 if "comma" in variant else 16)
    assert state.std.shape == (5,)
    assert (state.std < 0.1).all()


def test_comma_selection_returns_children_only():
    strategy = ChaoticES(8, jnp.zeros(3), selection="comma")
    params = strategy.default_params
    population = jnp.arange(24.0).reshape(8, 3)
    fitness = jnp.asarray([5.0, 1.0, 7.0, 0.0, 6.0, 4.0, 3.0, 2.0])
    state = strategy.init(jax.random.key(0), population, fitness, params)
    asked, state = strategy.ask(jax.random.key(1), state, params)
    assert not (asked[:, None] == population).all(-1).any()
    assert set(np.asarray(state.parents).tolist()) <= {1, 3}
    assert np.abs(asked - population[state.parents]).max() <= 0.1 * 2**0.5 * (1 + 1e-3)
    # A success is a child better than its own parent, in the population before.
    half = jnp.where(jnp.arange(8) < 4, fitness[state.parents] - 0.5, fitness[state.parents] + 0.5)
    told, _ = strategy.tell(jax.random.key(2), asked, half, state, params)
    assert told.std == pytest.approx(adapt_std(jnp.asarray(0.1), jnp.asarray(0.5), params))


def test_a_schedule_gives_the_step_size():
    schedule = optax.piecewise_constant_schedule(0.5, {1: 0.1, 2: 0.1})
    strategy = ChaoticES(8, jnp.zeros(2), std_schedule=schedule)
    params, population = strategy.default_params, jnp.ones((8, 2))
    state = strategy.init(jax.random.key(0), population, sphere(population), params)
    stds = [float(state.std)]
    for key in jax.random.split(jax.random.key(1), 3):
        population, state = strategy.ask(key, state, params)
        state, _ = strategy.tell(key, population, sphere(population), state, params)
        stds.append(float(state.std))
    np.testing.assert_allclose(stds, [0.5, 0.05, 0.005, 0.005], rtol=1e-5)


def test_where_few_are_finite_they_take_all_places():
    fitness = jnp.asarray([jnp.nan, 3.0, jnp.inf, 1.0, jnp.nan])
    assert select(fitness, 4).tolist() == [3, 1, 3, 1]
    assert select(fitness, 1).tolist() == [3]
    assert select(fitness.at[0].set(-jnp.inf), 4).tolist() == [3, 1, 3, 1]
    assert select(jnp.arange(5.0), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "mutation",
    [
        "logistic",
        *(pytest.param(x, marks=pytest.mark.slow) for x in MUTATIONS if x != "logistic"),
    ],
)
def test_reaches_the_sphere_minimum_under_jit_scan_and_vmap_over_seeds(mutation):
    strategy = ChaoticES(POPULATION, jnp.zeros(DIMENSIONS), mutation=mutation)
    assert isinstance(strategy, PopulationBasedAlgorithm)
    run = jax.jit(jax.vmap(lambda key: minimise(strategy, strategy.default_params, key)))
    state, best = run(jax.random.split(jax.random.key(0), 5))
    assert (best[:, -1] < 1e-3).all()
    assert (np.diff(best) <= 0).all()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_population_is_elites_best_first_then_children():
    strategy = ChaoticES(8, jnp.zeros(3), elite_ratio=0.25)
    params = strategy.default_params
    population = jnp.arange(24.0).reshape(8, 3)
    fitness = jnp.asarray([5.0, 1.0, 7.0, 0.0, 6.0, 4.0, 3.0, 2.0])
    state = strategy.init(jax.random.key(0), population, fitness, params)
    asked, state = strategy.ask(jax.random.key(1), state, params)
    assert asked.shape == (8, 3)
    np.testing.assert_array_equal(asked[:2], population[jnp.asarray([3, 1])])
    # Children lie one step of bounded chaotic noise from their parent.
    steps = np.abs(asked[2:] - asked[state.parents])
    assert (steps > 0).any()
    assert steps.max() <= 0.1 * 2**0.5 * (1 + 1e-3)


def test_params_sweep_without_retracing():
    strategy = ChaoticES(POPULATION, jnp.zeros(DIMENSIONS))
    traces = []

    def fitness(population):
        traces.append(1)
        return sphere(population)

    run = jax.jit(lambda params, key: minimise(strategy, params, key, fitness, 5)[1])
    params = strategy.default_params
    first = run(params, jax.random.key(0))
    count = len(traces)
    second = run(params.replace(std_init=0.5), jax.random.key(0))
    assert len(traces) == count
    assert not np.array_equal(first, second)


def test_solutions_may_be_any_pytree():
    solution = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}
    strategy = ChaoticES(4, solution)
    population = jax.tree.map(lambda x: jnp.ones((4, *x.shape)), solution)
    state = strategy.init(jax.random.key(0), population, jnp.arange(4.0), strategy.default_params)
    asked, _ = strategy.ask(jax.random.key(1), state, strategy.default_params)
    assert jax.tree.map(jnp.shape, asked) == {"a": (4, 2, 3), "b": (4,)}


def test_failed_solutions_never_become_parents():
    strategy = ChaoticES(8, jnp.zeros(2), elite_ratio=0.25)
    params = strategy.default_params
    population = jnp.arange(16.0).reshape(8, 2)
    state = strategy.init(jax.random.key(0), population, jnp.arange(8.0), params)
    population, state = strategy.ask(jax.random.key(1), state, params)
    fitness = jnp.asarray([jnp.nan, 3.0, jnp.nan, jnp.nan, 2.0, jnp.nan, jnp.inf, jnp.nan])
    state, _ = strategy.tell(jax.random.key(2), population, fitness, state, params)
    asked, _ = strategy.ask(jax.random.key(3), state, params)
    np.testing.assert_array_equal(asked[:2], population[jnp.asarray([4, 1])])


def test_elites_are_scored_again_and_lose_a_lucky_score():
    strategy = ChaoticES(8, jnp.zeros(2), elite_ratio=0.25)
    params = strategy.default_params
    lucky = jnp.asarray([-100.0, 1, 2, 3, 4, 5, 6, 7])
    population = jnp.arange(16.0).reshape(8, 2)
    state = strategy.init(jax.random.key(0), population, lucky, params)
    asked, state = strategy.ask(jax.random.key(1), state, params)
    np.testing.assert_array_equal(asked[0], population[0])
    honest = jnp.arange(8.0).at[0].set(50.0)
    state, _ = strategy.tell(jax.random.key(2), asked, honest, state, params)
    again, _ = strategy.ask(jax.random.key(3), state, params)
    assert not (again[:2] == population[0]).all(-1).any()


def test_step_size_follows_the_success_rate():
    params = ChaoticES(8, jnp.zeros(2)).default_params
    std = jnp.asarray(0.1)
    assert adapt_std(std, jnp.asarray(0.2), params) == pytest.approx(0.1)
    assert adapt_std(std, jnp.asarray(1.0), params) == pytest.approx(0.1 * np.exp(0.5))
    assert adapt_std(std, jnp.asarray(0.0), params) == pytest.approx(0.1 * np.exp(-0.125))
    assert adapt_std(jnp.asarray(1e-6), jnp.asarray(0.0), params) == pytest.approx(1e-6)


def test_refuses_bad_arguments():
    with pytest.raises(ConfigError, match="no mutation 'tentt'; expected one of logistic"):
        ChaoticES(8, jnp.zeros(2), mutation="tentt")
    with pytest.raises(ConfigError, match="population_size is 1"):
        ChaoticES(1, jnp.zeros(2))
    with pytest.raises(ConfigError, match=r"elite_ratio is 1\.0"):
        ChaoticES(8, jnp.zeros(2), elite_ratio=1.0)
    with pytest.raises(ConfigError, match="selection is 'tournament'; expected one of plus, comma"):
        ChaoticES(8, jnp.zeros(2), selection="tournament")
