"""SLF: its gates and their scales by NumPy, what they learn, and a real training."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import LOSSES, train
from edl_jax.data import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError
from edl_jax.losses import Student
from edl_jax.losses.by_name import resolve_loss
from edl_jax.methods.slf import SLF, gate_weights, scales_of
from edl_jax.training import TrainConfig
from tests.test_lookahead import SMALL, Linear

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(8, 3)).astype(np.float32), RNG.integers(0, 3, 8, np.int32)
IMAGES, CLASSES = RNG.normal(size=(2, 8, 4)), RNG.integers(0, 3, (2, 8), np.int32)
WEIGHTS = RNG.normal(size=(4, 3))
KEY = jax.random.key(3)


def begun(method):
    return jax.jit(method.init, static_argnums=1)(KEY, 3)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def student_of(step):
    """A linear classifier by gradient descent at a rate of 0.5."""
    (images, held_out), (labels, held_out_labels) = IMAGES, CLASSES

    def lookahead(losses, steps):
        weights = jnp.asarray(WEIGHTS)
        for _ in range(steps):
            loss = lambda w: losses(images @ w, labels).mean()  # noqa: E731
            weights -= 0.5 * jax.grad(loss)(weights)
        return held_out @ weights, held_out_labels

    progress = jnp.float32(step) / 40
    validation = lambda: (held_out @ WEIGHTS, held_out_labels)  # noqa: E731
    return Student(step, progress, images @ WEIGHTS, labels, validation, lookahead)


def test_gates_and_losses_equal_numpys():
    method = SLF(candidates=("cross_entropy", "gce(q=0.5)", "mae"))
    gates, scales = np.float32([1.0, -0.5, 0.2]), np.float32([1.0, 2.0, 0.5])
    state = {"gates": gates, "scales": scales, "temperature": np.float32(0.7), "key": KEY}
    noise = np.asarray(jax.random.logistic(KEY, (3,), jnp.float32), np.float64)
    on = 1 / (1 + np.exp(-(np.asarray([1.0, -0.5, 0.2]) + noise) / 0.7))
    p = softmax(LOGITS.astype(np.float64))[np.arange(8), LABELS]
    values = [-np.log(p), (1 - p**0.5) / 0.5, 2 * (1 - p)]
    expected = sum(w * s * x for w, s, x in zip(on / on.sum(), [1, 2, 0.5], values, strict=True))
    losses = jax.jit(method.losses)
    np.testing.assert_allclose(losses(state, LOGITS, LABELS), expected, rtol=1e-5)
    # Soft labels are defined wherever the candidates define them.
    np.testing.assert_allclose(
        losses(state, LOGITS, np.eye(3, dtype=np.float32)[LABELS]), expected, rtol=1e-5
    )


def test_at_a_low_temperature_gates_are_on_with_the_probability_of_their_sigmoid():
    gates = np.float32([2.0, 0.0, -1.0, 50.0])  # the last is always on
    many = jax.vmap(gate_weights, (0, None, None))
    drawn = jax.jit(lambda key: many(jax.random.split(key, 4000), gates, 1e-3))
    weights = np.asarray(drawn(KEY))
    on = (weights > 1e-3).mean(axis=0)
    np.testing.assert_allclose(on, 1 / (1 + np.exp(-gates)), atol=0.03)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_scales_give_every_loss_cross_entropys_mean_gradient_length():
    losses = [resolve_loss(x) for x in ("cross_entropy", "gce(q=0.5)", "mae")]
    p = softmax(LOGITS.astype(np.float64))
    length = np.linalg.norm(p - np.eye(3)[LABELS], axis=-1)
    p = p[np.arange(8), LABELS]
    lengths = [(slope * length).mean() for slope in (np.ones(8), p**0.5, 2 * p)]
    found = jax.jit(partial(scales_of, losses))(LOGITS, LABELS)
    np.testing.assert_allclose(found, lengths[0] / np.asarray(lengths), rtol=1e-5)


def test_the_gates_gradient_is_that_of_differences_through_two_steps_in_float64():
    method = SLF(candidates=("cross_entropy", "gce(q=0.5)", "mae"), every=2, steps=2)
    with jax.enable_x64(True):
        state = begun(method)
        key = state.pop("key")
        wide = lambda x: np.float64(x) if x.dtype == np.float32 else np.asarray(x)  # noqa: E731
        state = jax.tree.map(wide, state)

        @jax.jit
        def update(state, step, key):
            after = method.update({**state, "key": key}, student_of(step))
            after.pop("key")
            return after

        after = jax.tree.map(np.asarray, update(state, 2, key))
        found = after["adam"][0].mu / 0.1  # of Adam's first step

        key_ahead = jax.random.split(key)[1]
        logistic = np.asarray(jax.random.logistic(key_ahead, (3,), jnp.float32), np.float64)
        expected = []
        for index in range(3):
            sides = []
            for change in (1e-5, -1e-5):
                gates = np.zeros(3)
                gates[index] = change
                on = 1 / (1 + np.exp(-(gates + logistic) / after["temperature"]))
                sides.append(validation_loss(on / on.sum() * after["scales"]))
            expected.append((sides[0] - sides[1]) / 2e-5)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert np.abs(expected).min() > 1e-5
        unchanged = update(state, 3, key)  # no multiple of `every`
        np.testing.assert_array_equal(unchanged["gates"], state["gates"])


def validation_loss(factors):
    """NumPy's: cross-entropy on the validation images after two steps with the weighted losses."""
    weights, (images, held_out), (labels, held_out_labels) = WEIGHTS, IMAGES, CLASSES
    for _ in range(2):
        p = softmax(images @ weights)
        p_y = p[np.arange(8), labels]
        slopes = factors[0] + factors[1] * p_y**0.5 + factors[2] * 2 * p_y
        gradient = slopes[:, None] * (p - np.eye(3)[labels])
        weights = weights - 0.5 * images.T @ gradient / 8
    return -np.log(softmax(held_out @ weights)[np.arange(8), held_out_labels]).mean()


def test_gates_avoid_a_loss_that_is_small_and_harms(monkeypatch):
    monkeypatch.setitem(
        LOSSES, "harmful", lambda logits, labels: -LOSSES["cross_entropy"](logits, labels)
    )
    method = SLF(candidates=("harmful", "cross_entropy"), every=1)
    images, labels = np.float32(IMAGES[0]), CLASSES[0]

    def lookahead(losses, steps):  # the validation images are those that it trains on
        loss = lambda w: losses(images @ w, labels).mean()  # noqa: E731
        weights = jnp.asarray(WEIGHTS, jnp.float32)
        return images @ (weights - 0.5 * jax.grad(loss)(weights)), labels

    @jax.jit
    def learned():
        student = Student(1, jnp.float32(0.5), images[:, :3], labels, None, lookahead)
        update = lambda _, state: method.update(state, student)  # noqa: E731
        return jax.lax.fori_loop(0, 40, update, method.init(KEY, 3))["gates"]

    harmful, helpful = learned()
    assert harmful < -0.5
    assert helpful > 0.5


@pytest.mark.parametrize("name", ["slf", "elf", "adaptive_barron", "unheard_of"])
def test_candidates_are_static_losses(name):
    with pytest.raises(ConfigError, match=name):
        SLF(candidates=("cross_entropy", name))


@pytest.mark.slow
def test_two_devices_train_with_it():
    config = dataclasses.replace(SMALL, augmentation=Augmentation(crop=False, mixup=0.2))
    loss = SLF(candidates=("cross_entropy", "gce"), every=2)
    result = train(config, loss=loss, model=Linear, devices=jax.devices()[:2])
    gates = np.asarray(result.loss_state["gates"])
    assert np.isfinite(gates).all()
    assert np.abs(gates).min() > 0


@pytest.mark.slow
def test_a_classifier_learns_digits():
    data = DataConfig(name="digits", val_examples=256)
    config = TrainConfig(loss="slf", data=data, model="resnet8", width=8, epochs=12, batch_size=64)
    result = train(config, devices=jax.devices()[:1])
    assert result.test_accuracy > 0.95
