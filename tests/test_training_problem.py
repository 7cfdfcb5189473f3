"""Losses as solutions, scored by short trainings; and the searches on them."""

import dataclasses
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import TrainConfig, train
from edl_jax.checked import Count
from edl_jax.errors import ConfigError, EDLError
from edl_jax.evolution.evolve import evolve
from edl_jax.losses import LOSSES
from edl_jax.losses.by_name import list_methods, resolve_loss, resolve_method
from edl_jax.losses.method import METHODS
from edl_jax.losses.searched import SearchedLoss
from edl_jax.methods.edl import EDL
from edl_jax.methods.elf import ELF
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import read_json
from edl_jax.studies import CompareConfig, compare
from edl_jax.training.classifier import AXIS
from edl_jax.training.learner import Learner
from edl_jax.training.search import TrainingProblem
from edl_jax.training.training import load_shared
from tests.test_training import CROSS_ENTROPY, DIGITS, PLAIN

CONFIG = dataclasses.replace(
    DIGITS,
    model="small",
    epochs=10,
    learning_rate=0.5,
    batch_size=32,
    augmentation=PLAIN,
    data=dataclasses.replace(DIGITS.data, train_examples=288, test_examples=50, val_examples=100),
)
STEPS = 40  # of 9 an epoch: five orders of the images


def scaled(solution):
    """Cross-entropy times a number, which acts as the learning rate does."""
    return lambda logits, labels: solution * CROSS_ENTROPY(logits, labels)


def sample(key):
    return jax.random.uniform(key)


@pytest.fixture(scope="module")
def dataset():
    return load_shared(CONFIG.data)


@pytest.fixture(scope="module")
def problem(dataset):
    return TrainingProblem(CONFIG, dataset, sample, scaled, STEPS)


@pytest.fixture(scope="module")
def errors(problem):
    """Of no learning, little and much, of what diverges, and of little once more."""
    factors = jnp.asarray([0.0, 0.1, 1.0, jnp.nan, 0.1])
    key = jax.random.key(3)
    return np.asarray(problem.eval(key, factors, problem.init(key))[0])


@pytest.mark.slow
def test_fitness_is_the_error_after_a_training_with_each_loss(dataset, problem, errors):
    mesh = device_mesh(AXIS, jax.devices()[:1])
    short = dataclasses.replace(CONFIG, warmup_epochs=CONFIG.warmup_epochs * STEPS / 90)
    key_init, key_order, key_steps = jax.random.split(jax.random.key(3), 3)
    orders = [jax.random.permutation(k, 288) for k in jax.random.split(key_order, 5)]
    rows = np.concatenate(orders).reshape(-1, 32)
    for index, factor in ((1, 0.1), (2, 1.0)):
        learner = Learner(short, dataset, scaled(factor), mesh, total_steps=STEPS)
        step = jax.jit(
            jax.vmap(
                lambda state, *batch: learner.step(state, key_steps, lambda _: batch),  # noqa: B023
                in_axes=(None, None, None),
                axis_name=AXIS,
                axis_size=1,
                out_axes=None,
            )
        )
        state = learner.init(key_init)
        for batch in rows[:STEPS]:
            state = step(state, dataset.train_images[batch], dataset.train_labels[batch])
        predicted = np.argmax(learner.evaluated_logits(state, dataset.val_images), axis=-1)
        wrong = np.mean(predicted != dataset.val_labels)
        # Rounding differs between the two forms of a convolution: an image or two near a tie.
        np.testing.assert_allclose(errors[index], wrong, atol=0.021)


@pytest.mark.slow
def test_all_losses_of_a_generation_have_the_same_draw_and_what_diverges_is_worst(problem, errors):
    assert errors[1] == errors[4]
    assert errors[3] == 1.0
    assert errors[2] < errors[0] - 0.1  # learning helps
    other = problem.eval(jax.random.key(4), jnp.ones(1), problem.init(jax.random.key(0)))[0]
    assert other[0] != errors[2]


@pytest.mark.slow
def test_a_search_finds_what_trains_better(problem):
    found = evolve(
        problem,
        "ChaoticES",
        jax.random.key(0),
        generations=2,
        population_size=8,
        devices=jax.devices()[:1],
    )
    assert found.history["best_fitness"][-1] < 0.8
    assert found.fitness < 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steepest(SearchedLoss):
    """Of some degrees of label smoothing the one with the least error."""

    looks_at = "labels of validation images"

    count: Count = 2

    def search(self, key, task):
        assert task.num_classes == 10
        smoothing = lambda alpha: partial(LOSSES["label_smoothing"], alpha=alpha)  # noqa: E731
        problem = task.trainings(sample, smoothing, STEPS)
        degrees = jnp.linspace(1.0, 0.0, self.count)
        fitness, _, _ = problem.eval(key, degrees, problem.init(key))
        return f"label_smoothing(alpha={degrees[jnp.argmin(fitness)]})"

    steps = STEPS

    @property
    def num_trainings(self):
        return self.count


METHODS.register("steepest")(Steepest)


@pytest.mark.slow
def test_train_searches_first(dataset, tmp_path):
    found = train(CONFIG, loss=Steepest(), run_dir=tmp_path / "run")
    given = train(CONFIG, loss="label_smoothing(alpha=0.0)")
    assert found.test_nll == given.test_nll
    again = train(CONFIG, loss=Steepest(), run_dir=tmp_path / "run")
    assert again.test_nll == found.test_nll
    kept = read_json(tmp_path / "run" / "search" / "found.json")
    assert kept.pop("cpu_seconds") > 0
    images = {"trainings": 2, "images": 2 * STEPS * 32, "validation_images": 100}
    assert kept == {"loss": "label_smoothing(alpha=0.0)", **images}
    with pytest.raises(EDLError, match="another configuration"):
        train(CONFIG, loss=Steepest(count=4), run_dir=tmp_path / "run")


@pytest.mark.slow
def test_a_comparison_searches_once_for_all_seeds_and_says_what_that_took(tmp_path):
    config = CompareConfig(
        losses=("label_smoothing(alpha=0)",), methods=("steepest",), num_seeds=2, train=CONFIG
    )
    study = compare(config, run_dir=tmp_path / "run", executor=1)
    same, found = study.table.to_dict("records")
    assert found["train.loss"] == "steepest"
    (mean,) = [name for name in same if name.startswith("accuracy") and "mean" in name]
    assert found[mean] == same[mean]
    (search,) = study.tables["What was searched for"].to_dict("records")
    assert search["found"] == "label_smoothing(alpha=0.0)"
    assert search["trainings"] == 2
    with mock.patch.object(Steepest, "search", side_effect=AssertionError):
        again = compare(config, run_dir=tmp_path / "run", executor=1)
    assert again.table.equals(study.table)


def test_a_search_needs_validation_images():
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, val_examples=0))
    with pytest.raises(ConfigError, match="Steepest looks at validation images, of which there"):
        train(config, loss=Steepest())


def test_methods_have_names_and_options():
    assert resolve_method("elf(generations=3, seed=2)") == ELF(generations=3, seed=2)
    assert resolve_method("edl") is None  # the shipped loss
    assert resolve_method("edl(seed=1)") == EDL(seed=1)
    with pytest.raises(ConfigError, match="'elf' is learned by a training; expected a loss"):
        resolve_loss("elf")
    assert TrainConfig(loss="elf(steps=5)").loss == "elf(steps=5)"
    with pytest.raises(ConfigError, match="'elf', with options seed, population_size"):
        resolve_method("elf(epochs=3)")
    with pytest.raises(ConfigError, match="generations is 0; expected"):
        resolve_method("elf(generations=0)")
    for name, summary, references, looks_at in list_methods():
        if not METHODS.is_protected(name):  # of a test
            continue
        assert summary.endswith(".")
        assert references
        assert looks_at.startswith("It looks at ")
