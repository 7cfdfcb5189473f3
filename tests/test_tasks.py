import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edl_jax import Mixture, PretrainConfig, pretrain
from edl_jax.errors import ConfigError
from edl_jax.evolution.problems import TaskProblem
from edl_jax.objective import TaskConfig, draw_tasks, task_errors
from edl_jax.objective.tasks import draw_problem
from tests.network_tools import quick_jit
from tests.test_evolution import TINY

SMALL = TaskConfig(
    num_tasks=3,
    num_classes=4,
    num_features=5,
    train_examples=300,
    test_examples=200,
    max_label_noise=0.0,
    hidden=8,
    steps=60,
    batch_size=32,
    learning_rates=(0.01, 0.3),
)
NO_GAMMA = Mixture(sparse=0)
KEY = jax.random.key(0)
TASKED = dataclasses.replace(TINY, task_weight=2.0, tasks=SMALL, generations=2)


def cross_entropy(log_probabilities, labels):
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]


@pytest.fixture(scope="module")
def tasks():
    return jax.device_get(quick_jit(draw_tasks, static_argnums=(1, 2))(KEY, SMALL, NO_GAMMA))


@pytest.fixture(scope="module")
def errors(tasks):
    return errors_of_scaled(1.0, tasks)


def errors_of(loss, tasks):
    return np.asarray(jax.jit(lambda tasks: task_errors(loss, tasks, SMALL))(tasks))


@jax.jit
def errors_of_scaled(factor, tasks):
    """Of a multiple of cross-entropy."""
    return task_errors(lambda x, y: factor * cross_entropy(x, y), tasks, SMALL)


@functools.cache
def drawing(max_label_noise):
    config = dataclasses.replace(SMALL, max_label_noise=max_label_noise)
    return jax.jit(lambda key: draw_problem(key, config))


def draw(key, max_label_noise=0.0):
    return drawing(max_label_noise)(jax.random.key(key))


@pytest.mark.parametrize("key", range(4))
def test_a_problem_is_standardised_and_its_key_alone_decides_it(key):
    problem = draw(key)
    assert problem.inputs.shape == (300, 5)
    assert problem.test_inputs.shape == (200, 5)
    together = np.concatenate([problem.inputs, problem.test_inputs])
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(together.std(axis=0), 1, rtol=1e-5)
    labels = np.concatenate([problem.labels, problem.test_labels])
    counts = np.bincount(labels, minlength=4)
    assert len(counts) == 4
    assert counts.min() > 25  # no class is missing, none is all
    again, other = draw(key), draw(key + 100)
    for a, b in zip(problem, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(problem.inputs, other.inputs)


def test_problems_are_of_both_families():
    # The features of a teacher's inputs are independent, those of a mixture's clusters are not.
    shared = [np.abs(np.corrcoef(draw(key).inputs.T) - np.eye(5)).max() for key in range(12)]
    independent = np.asarray(shared) < 0.2  # above three standard errors of 300 examples
    assert 0 < independent.sum() < 12


def test_label_noise_spoils_up_to_its_rate_and_no_test_label():
    shares = []
    for key in range(12):
        clean, noisy = draw(key), draw(key, max_label_noise=0.5)
        np.testing.assert_array_equal(clean.test_labels, noisy.test_labels)
        np.testing.assert_array_equal(clean.inputs, noisy.inputs)
        shares.append(np.mean(np.asarray(clean.labels) != noisy.labels))
    assert max(shares) < 0.5 + 0.09  # three standard errors of 300 labels
    assert min(shares) < 0.2 < 0.3 < max(shares)  # each problem has a rate of its own


def test_cross_entropy_learns_and_needs_a_learning_rate(errors):
    assert errors.shape == (2, 3)
    assert (errors[1] < errors[0]).all()
    assert (errors[1] < 0.5).all()  # chance is 0.75


def test_the_scale_of_a_loss_does_not_matter(tasks, errors):
    scaled = errors_of_scaled(100.0, tasks)
    np.testing.assert_allclose(scaled, errors, atol=0.02)


def test_a_loss_upside_down_learns_nothing(tasks):
    wrong = errors_of_scaled(-1.0, tasks)
    assert (wrong > 0.7).all()


def test_a_task_is_what_plain_optax_makes_of_it(tasks, errors):
    """The same training written out in float64 NumPy's manner, one step after the other."""
    problem, weights, batches = jax.tree.map(
        lambda x: x[1], (tasks.problems, tasks.weights, tasks.batches)
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 6, 61)

    def logits_of(w, x):
        h = x @ w["hidden"]
        h = (h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-5) * w["scale"] + w["shift"]
        return jnp.maximum(h, 0) @ w["head"] + w["bias"]

    def loss(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(w, x), y).mean()

    gradient = quick_jit(jax.grad(loss))
    rates = 0.3 * np.asarray(quick_jit(jax.vmap(schedule))(np.arange(1, 61)))
    speed = jax.tree.map(np.zeros_like, weights)
    for rate, rows in zip(rates, batches, strict=True):
        found = gradient(weights, problem.inputs[rows], problem.labels[rows])
        found = jax.tree.map(lambda g, w: np.asarray(g) + 5e-4 * w, found, weights)
        speed = jax.tree.map(lambda s, g: 0.9 * s + g, speed, found)
        weights = jax.tree.map(
            lambda w, g, s, rate=rate: np.float32(w - rate * (g + 0.9 * s)), weights, found, speed
        )
    logits = np.asarray(quick_jit(logits_of)(weights, problem.test_inputs))
    wrong = logits.argmax(axis=-1) != problem.test_labels
    assert abs(float(wrong.mean()) - errors[1, 1]) <= 0.015


@pytest.mark.slow
def test_fitness_is_the_error_at_the_best_learning_rate():
    problem, key = TaskProblem(TASKED), jax.random.key(1)
    population = jax.vmap(problem.sample)(jax.random.split(key, 6))
    fitness, _, metrics = problem.eval(key, population, problem.init(key))
    np.testing.assert_array_equal(metrics["task_error"], fitness)
    assert len(set(np.asarray(fitness).tolist())) > 3
    one = jax.tree.map(lambda x: x[3], population)
    alone = errors_of(problem.network(one), draw_tasks(key, SMALL, TASKED.mixture))
    np.testing.assert_allclose(alone.mean(axis=1).min(), fitness[3], atol=0.01)


@pytest.mark.slow
def test_the_winner_is_chosen_and_measured_on_tasks_of_their_own():
    result = pretrain(TASKED)
    assert result.history["task_error"].shape == (2,)
    assert 0 < result.metrics["task_error"] < 0.75
    reference = result.metrics["task_error_of_cross_entropy"]
    assert 0 < reference < 0.5
    assert result.metrics["task_error"] != reference


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tasks": 0}, r"TaskConfig\.num_tasks is 0; expected a whole number, at least 1"),
        ({"num_classes": 1}, r"TaskConfig\.num_classes is 1"),
        ({"batch_size": 1}, r"TaskConfig\.batch_size is 1; expected a whole number, at least 2"),
        ({"test_examples": 1}, r"TaskConfig\.test_examples is 1"),
        ({"hidden": 2.5}, r"TaskConfig\.hidden is 2\.5"),
        ({"max_label_noise": 1.5}, r"TaskConfig\.max_label_noise is 1\.5"),
        ({"learning_rates": ()}, r"TaskConfig\.learning_rates is \(\); expected .*not empty"),
        ({"learning_rates": (0.1, -1)}, "expected a tuple .each a finite number, more than 0"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_weight": -1.0}, r"task_weight is -1\.0"),
        (
            {"tasks": SMALL},
            r"task_weight is 0\.0; expected more than 0.* where tasks are configured",
        ),
        (
            {"task_weight": 1.0, "network": "pair", "class_counts": (3,)},
            r"tasks\.num_classes is 10; expected 3, which the pair network serves",
        ),
    ],
)
def test_pretraining_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        PretrainConfig(**change)
