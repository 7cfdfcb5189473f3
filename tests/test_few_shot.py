"""Few-shot learning with a toy learner: its tasks, its steps, what it refuses, how it resumes."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import ArraySource, DataConfig
from edl_jax.data.by_class import by_class
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError, DivergedError, RunFolderError
from edl_jax.training.few_shot import FewShotConfig, MetaTraining, meta_train

RATE = 0.125
COUNTS = (3, 5, 4, 4, 3, 6)  # images of each class


def source(counts=COUNTS):
    """Images of one pixel, by whose value each is known: its class in tens, its number in ones."""
    labels = np.repeat(np.arange(len(counts)), counts)
    numbers = np.concatenate([np.arange(n) for n in counts])
    images = (10 * labels + numbers).astype(np.uint8)[:, None, None, None]
    order = np.random.default_rng(0).permutation(len(labels))
    split = images[order], labels[order]
    return ArraySource("pixels", "made", tuple("abcdef"), {"train": split, "test": split})


class Toy:
    """Its loss is what it has learned, so that Adam lowers it by the learning rate each step."""

    def init(self, key, image_shape, ways):
        return jnp.zeros(())

    def query_loss(self, learned, support, query):
        return learned, jnp.mean(query) - jnp.mean(query) + 0.5


class Pixels(Toy):
    """Its loss is the mean of the pixels of a task's queries, as they are normalized."""

    def query_loss(self, learned, support, query):
        return query.mean() + 0 * learned, support.mean()


CONFIG = FewShotConfig(
    ways=3, shots=1, queries=2, test_classes=3, steps=5, learning_rate=RATE, test_tasks=2
)


@pytest.fixture(autouse=True)
def short_periods(monkeypatch):
    monkeypatch.setattr(MetaTraining, "period", 2)
    monkeypatch.setattr(MetaTraining, "chunk", 1)


def test_tasks_are_of_different_images_of_different_classes_all_of_which_are_drawn():
    data = by_class(load_dataset(DataConfig("pixels"), source()), "train", range(1, 5), 3)
    keys = jax.random.split(jax.random.key(0), 200)
    tasks = jax.jit(jax.vmap(lambda key: data.task(key, 3, 3)))(keys)
    tasks = np.asarray(tasks)[..., 0, 0, 0]
    classes = tasks // 10
    assert (classes == classes[..., :1]).all()
    assert all(len({*task[:, 0]}) == 3 for task in classes)
    assert all(len({*task.ravel()}) == 9 for task in tasks)
    assert {*np.unique(tasks)} == {10 * k + n for k in range(1, 5) for n in range(COUNTS[k])}
    # A place is equally often of each class: 50 of 200, 5 standard deviations to either side.
    assert np.abs(np.bincount(classes[:, 0, 0], minlength=5)[1:] - 50).max() < 5 * 6.2


def test_the_history_has_the_mean_of_each_period_and_training_follows_the_gradient():
    result = meta_train(Toy(), source(), CONFIG)
    means = [-RATE * x for x in (0.5, 2.5, 4)]
    assert [row["step"] for row in result.history] == [2, 4, 5]
    np.testing.assert_allclose([row["train_loss"] for row in result.history], means, rtol=1e-5)
    assert [row["train_accuracy"] for row in result.history] == [0.5] * 3
    np.testing.assert_allclose(result.learned, -5 * RATE, rtol=1e-5)
    np.testing.assert_allclose(result.test_loss, -5 * RATE, rtol=1e-5)
    assert (result.test_accuracy, result.test_interval) == (0.5, 0.0)
    assert result.evaluate(3).tolist() == [0.5] * 3


def test_training_classes_and_test_classes_are_apart_and_pixels_are_normalized():
    counts = (3, 3, 3, 3, 3, 3)
    run = MetaTraining(Pixels(), load_dataset(DataConfig("pixels"), source(counts)), CONFIG)
    pixels = np.concatenate([10 * k + np.arange(3.0) for k in range(6)])
    scaled = (pixels - pixels.mean()) / pixels.std()
    # A task takes all images of its three classes: one is shown, and two are asked for.
    for data, of_classes in ((run._train, scaled[:9]), (run._test, scaled[9:])):
        asked, shown = run._measured(np.float32(0), run._key, 1, data)
        np.testing.assert_allclose((2 * asked + shown) / 3, of_classes.mean(), rtol=1e-5)


def test_a_run_that_was_stopped_resumes_to_the_same_result(tmp_path, monkeypatch):
    whole = meta_train(Pixels(), source(), CONFIG, run_dir=tmp_path / "whole")
    assert len({row["train_loss"] for row in whole.history}) == 3  # each step has its own tasks
    advance = MetaTraining.advance

    def stopped(self, state, n):
        if int(state.step) == 3:
            raise KeyboardInterrupt
        return advance(self, state, n)

    monkeypatch.setattr(MetaTraining, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        meta_train(Pixels(), source(), CONFIG, run_dir=tmp_path / "run")
    monkeypatch.setattr(MetaTraining, "advance", advance)
    steps = []
    monkeypatch.setattr(
        MetaTraining, "advance", lambda *x: steps.append(int(x[1].step)) or advance(*x)
    )
    resumed = meta_train(Pixels(), source(), CONFIG, run_dir=tmp_path / "run")
    assert steps == [2, 3, 4]
    assert resumed.history == whole.history
    assert resumed.test_loss == whole.test_loss
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["test_accuracy"] == whole.test_accuracy
    other = dataclasses.replace(CONFIG, steps=6)
    with pytest.raises(RunFolderError, match="another configuration: few_shot"):
        meta_train(Pixels(), source(), other, run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"ways": 4}, source(), "ways is 4; pixels has 3 training classes beside 3 test classes"),
        ({"test_classes": 7}, source(), "pixels has 0 training classes beside 7 test classes"),
        ({"queries": 3}, source(), "takes 4 images of a class, and pixels has 3 of 'a' in its tr"),
        ({}, DataConfig("digits", stream=True), "its images are streamed"),
        ({"shots": 0}, source(), "FewShotConfig.shots is 0; expected a whole number, at least 1"),
    ],
)
def test_what_cannot_work_is_refused(changes, data, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        meta_train(Toy(), data, dataclasses.replace(CONFIG, **changes))


def test_a_loss_that_is_no_longer_finite_ends_the_training():
    class Diverging(Toy):
        def query_loss(self, learned, support, query):
            return jnp.where(learned < -2.5 * RATE, jnp.nan, learned), jnp.zeros(())

    with pytest.raises(DivergedError, match="not finite by step 4 "):
        meta_train(Diverging(), source(), CONFIG)
