"""Our problems are evosax's: in plain loops, in sums, and with others' strategies and problems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms import CMA_ES, SNES
from evosax.problems import BBOBProblem, Problem

from edl_jax import (
    ChaoticES,
    PretrainConfig,
    RankingProblem,
    TaskProblem,
    evolve,
    pretrain,
)
from edl_jax.errors import ConfigError, InputError, RunFolderError
from edl_jax.evolution.problems import WeightedSum, problem_of
from edl_jax.objective import TaskConfig
from tests.test_evolution import TINY

TASKS = TaskConfig(
    num_tasks=2, num_classes=3, num_features=3, train_examples=64, test_examples=64, steps=5
)
CONFIG = dataclasses.replace(TINY, tasks=TASKS, task_weight=2.0)
KEY = jax.random.key(0)


def evaluated(problem, key=KEY, size=6):
    population = jax.vmap(problem.sample)(jax.random.split(key, size))
    fitness, state, metrics = problem.eval(key, population, problem.init(key))
    assert fitness.shape == (size,)
    return np.asarray(fitness), state, metrics


@pytest.mark.parametrize("kind", [RankingProblem, TaskProblem])
def test_each_is_an_evosax_problem(kind):
    problem = kind(CONFIG)
    assert isinstance(problem, Problem)
    assert problem.num_dims == 5 * 4 + 4 + 4 + 1
    fitness, state, _ = evaluated(problem)
    assert state.counter == 1
    np.testing.assert_array_equal(fitness, evaluated(problem)[0])
    assert not np.array_equal(fitness, evaluated(problem, jax.random.key(1))[0])
    assert kind(CONFIG) == problem
    assert hash(kind(CONFIG)) == hash(problem)
    assert kind().config == PretrainConfig()
    with pytest.raises(ConfigError, match="expected a PretrainConfig"):
        kind("surprisal")


def test_a_weighted_sum_adds_fitness_and_metrics_and_draws_by_a_key_for_each():
    ranking, tasks, other = RankingProblem(CONFIG), TaskProblem(CONFIG), RankingProblem(TINY)
    total = 0.5 * (0.7 * ranking + 2 * tasks) + other
    assert total.parts == ((0.35, ranking), (1.0, tasks), (1.0, other))
    fitness, state, metrics = evaluated(total)
    population = jax.vmap(total.sample)(jax.random.split(KEY, 6))

    def alone(problem, key):
        return problem.eval(key, population, problem.init(key))[0]

    of_ranking, of_tasks, of_other = map(alone, (ranking, tasks, other), jax.random.split(KEY, 3))
    expected = 0.35 * of_ranking + of_tasks + of_other
    np.testing.assert_allclose(fitness, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["task_error"], of_tasks, rtol=1e-6)
    assert [part.counter for part in state] == [1, 1, 1]
    assert problem_of(ranking) == ranking + 2.0 * tasks
    assert problem_of(other) is other


def test_evosax_problems_of_others_are_summed_too():
    sphere = BBOBProblem("sphere", num_dims=2, x_opt=jnp.zeros(2), f_opt=jnp.zeros(()))
    total = WeightedSum(((2.0, sphere), (1.0, sphere)))
    fitness, _, _ = evaluated(total)
    np.testing.assert_allclose(fitness, 3 * evaluated(sphere)[0], rtol=1e-5)
    one = RankingProblem(TINY)
    assert one * 2.0 + sphere == WeightedSum(((2.0, one), (1.0, sphere)))


def test_cma_es_evolves_a_loss_in_a_plain_evosax_loop():
    """docs/extend.md has the same loop."""
    problem = RankingProblem(dataclasses.replace(TINY, pairs_per_generation=256))
    strategy = CMA_ES(population_size=32, solution=problem.sample(KEY))
    params = strategy.default_params.replace(std_init=0.3)

    @jax.jit
    def generation(carry, key):
        state, problem_state = carry
        key_ask, key_eval, key_tell = jax.random.split(key, 3)
        population, state = strategy.ask(key_ask, state, params)
        fitness, problem_state, _ = problem.eval(key_eval, population, problem_state)
        state, metrics = strategy.tell(key_tell, population, fitness, state, params)
        return (state, problem_state), metrics["best_fitness_in_generation"]

    start = strategy.init(KEY, problem.sample(KEY), params), problem.init(KEY)
    (state, _), best = jax.lax.scan(generation, start, jax.random.split(KEY, 60))
    assert best[-5:].mean() < 0.5 * best[0]
    loss = problem.loss(strategy.get_mean(state), KEY)
    losses = loss(jnp.asarray([[3.0, 0, 0, 0, 0]] * 2), jnp.asarray([0, 1]))
    assert losses[1] > losses[0]


def test_chaotic_es_minimises_a_bbob_problem():
    problem = BBOBProblem("rosenbrock", num_dims=3, f_opt=jnp.zeros(()))
    strategy = ChaoticES(64, problem.sample(KEY))
    params = strategy.default_params.replace(std_init=1.0)
    found = evolve(problem, strategy, KEY, generations=150, params=params)
    assert found.fitness < 1e-2 * found.history["best_fitness"][0]
    assert found.fitness <= found.history["best_fitness"].min() * (1 + 1e-4)
    assert found.solution.shape == (3,)
    # The problem's own metrics are of the best.
    assert set(found.history) > {"best_fitness", "mean_fitness", "step_size", "failed", "fn_val"}
    np.testing.assert_allclose(
        found.history["fn_val"], found.history["best_fitness"], rtol=1e-5, atol=1e-6
    )
    again = evolve(problem, strategy, KEY, generations=150, params=params)
    np.testing.assert_array_equal(found.solution, again.solution)


@pytest.mark.parametrize("strategy", ["SV_CMA_ES", "RandomSearch"])
def test_any_strategy_evolves_any_problem_by_name(strategy):
    problem = BBOBProblem("sphere", num_dims=3, f_opt=jnp.zeros(()))
    found = evolve(problem, strategy, jax.random.key(1), generations=40, population_size=32)
    assert found.fitness < 0.5 * found.history["best_fitness"][0]
    assert found.history["best_fitness"].shape == (40,)


def test_a_generation_that_depends_on_the_key_alone_is_drawn_for_problems_of_others():
    """Their key is none of those that the strategy breeds by."""

    class Told(BBOBProblem):
        def eval(self, key, solutions, state):
            data = jax.random.key_data(jax.random.split(key, 8)).astype(jnp.float32)
            return jnp.full(solutions.shape[0], data[3, 0]), state, {}

    problem, key = Told("sphere"), KEY
    found = evolve(problem, SNES(8, jnp.zeros(2)), key, generations=1)
    generation = jax.random.fold_in(jax.random.split(key)[1], 0)  # the key of the first
    bred_by = jax.random.key_data(jax.random.split(generation, 8)).astype(jnp.float32)
    assert found.history["best_fitness"][0] not in np.asarray(bred_by)


def test_evolve_refuses_what_is_no_key_and_no_strategy():
    problem = BBOBProblem("sphere")
    with pytest.raises(InputError, match="expected a key"):
        evolve(problem, "SNES", 0, generations=1)
    with pytest.raises(ConfigError, match="name is 'Annealing'"):
        evolve(problem, "Annealing", KEY, generations=1)


NOT_FOR_EVOLVE = {
    "a problem's name": ({"problem": "sphere"}, "problem is 'sphere'; .* instance of Problem"),
    "a class of problems": ({"problem": BBOBProblem}, "problem is <class .* instance of Problem"),
    "a number for a strategy": ({"strategy": 5}, "strategy is 5; expected a string or an instance"),
    "a class of strategies": ({"strategy": SNES}, "strategy is <class .* instance of Evolutionary"),
    "no generations": ({"generations": 0}, "generations is 0; expected a whole number, at least 1"),
    "fewer than none": ({"generations": -1}, "generations is -1; expected"),
    "half a generation": ({"generations": 2.5}, r"generations is 2\.5; expected"),
    "no draws": ({"draws": 0}, "draws is 0; expected a whole number, at least 1"),
    "True draws": ({"draws": True}, "draws is True; expected"),
    "a number for parameters": ({"params": 5}, "params is 5; expected an instance of Params or No"),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("case", NOT_FOR_EVOLVE)
def test_evolve_refuses_wrong_arguments_before_it_evolves(case, named):
    changes, message = NOT_FOR_EVOLVE[case]
    strategy = "SNES" if named else SNES(8, jnp.zeros(2))
    given = {"problem": BBOBProblem("sphere"), "strategy": strategy, "generations": 1}
    with pytest.raises(ConfigError, match=message):
        evolve(key=KEY, **given | changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "SNES"}, r"strategy \(by name .*config\.strategy\) is 'SNES'; expected an"),
        ({"strategy": SNES}, "is <class .*; expected an instance of EvolutionaryAlgorithm or None"),
        ({"problem": "x"}, "problem is 'x'; expected an instance of Problem or None"),
        ({"problem": RankingProblem}, "problem is <class .*; expected an instance of Problem"),
    ],
)
def test_pretrain_refuses_what_is_no_strategy_and_no_problem(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pretrain(CONFIG, **given, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pretrain_takes_a_strategy_and_a_problem_of_your_own(tmp_path):
    ranking, tasks = RankingProblem(CONFIG), TaskProblem(CONFIG)
    given = {"strategy": SNES(16, ranking.sample(KEY)), "problem": 0.7 * ranking + 0.3 * tasks}
    mine = pretrain(CONFIG, **given, run_dir=tmp_path)
    assert mine.history["task_error"].shape == (5,)
    assert (mine.history["best_fitness"] < 2 * mine.history["task_error"]).all()  # CONFIG has 2.0
    assert mine.history["step_size"][0] > 0.8  # SNES's own, not the configuration's 0.1
    assert (mine.history["best_fitness"] > 0.3 * mine.history["task_error"]).all()
    # The folder knows them: the same resume, others are refused.
    given["strategy"] = SNES(16, ranking.sample(KEY))
    again = pretrain(CONFIG, **given, run_dir=tmp_path)
    np.testing.assert_array_equal(again.loss.scale, mine.loss.scale)
    for other in ({"problem": ranking}, {"strategy": ChaoticES(16, ranking.sample(KEY))}):
        with pytest.raises(RunFolderError, match="parts"):
            pretrain(CONFIG, **{**given, **other}, run_dir=tmp_path)
