"""L2T-DLN: its formulas, its LSTM's derivatives, and that it trains."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import TrainConfig, train
from edl_jax.data.config import DataConfig
from edl_jax.losses.method import check_loss
from edl_jax.methods.l2t_dln import (
    L2TDLN,
    fitted_network,
    network_losses,
    new_lstm,
    preprocessed,
    proposed,
)
from tests.methods.toy_student import CLASSES, as_float64, assert_gradient, loss_ahead, toy_student
from tests.test_lookahead import SMALL, Plain

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(5, CLASSES)).astype(np.float32), np.asarray([0, 3, 1, 1, 2])
SOFT = RNG.dirichlet(np.ones(CLASSES), size=5).astype(np.float32)
TINY = L2TDLN(steps=3, every=2, learning_rate=0.1, step_size=0.2, hidden=(5, 4), lstm=(3,))


@pytest.fixture(scope="module")
def first():
    """The first state, on the host."""
    return jax.device_get(jax.jit(partial(TINY.init, num_classes=CLASSES))(jax.random.key(0)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def value_of_pair(weights, x_y, x_j):
    x = np.asarray([sigmoid(x_y), sigmoid(x_j), 1, 0])
    for weight in weights[:-1]:
        x = x @ np.asarray(weight, np.float64)
        x = np.where(x > 0, x, 0.01 * x)
    return float((x @ np.asarray(weights[-1], np.float64))[0])


def value_of_class(weights, x, y):
    """The mean over all classes, where that of the label itself counts as 0."""
    values = [value_of_pair(weights, x[y], x[j]) for j in range(len(x)) if j != y]
    return sum(values) / len(x)


def test_the_loss_is_a_mean_over_pairs_of_classes(first):
    found = jax.jit(network_losses)(first["loss"], LOGITS, LABELS.astype(np.int32))
    of_class = partial(value_of_class, first["loss"])
    expected = [of_class(x, y) for x, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    found = jax.jit(network_losses)(first["loss"], LOGITS, SOFT)
    expected = [
        sum(w * of_class(x, y) for y, w in enumerate(weights))
        for x, weights in zip(LOGITS, SOFT, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_first_loss_is_near_a_logistic_loss_of_pairs():
    @jax.jit
    def of_pairs(key, pairs):
        weights = fitted_network(key, L2TDLN().hidden)
        as_logits = lambda x: network_losses(weights, x, jnp.zeros(len(x), jnp.int32))  # noqa: E731
        return 2 * as_logits(pairs), jax.grad(lambda x: 2 * as_logits(x).sum())(pairs)

    for seed in range(3):
        pairs = RNG.normal(scale=2, size=(500, 2)).astype(np.float32)
        pairs[0] = 0
        values, gradient = of_pairs(jax.random.key(seed), pairs)
        difference = pairs[:, 1] - pairs[:, 0]
        expected = 2 * np.log1p(np.exp(difference))
        assert np.sqrt(np.mean((values - expected) ** 2)) < 0.1 * np.std(expected)
        of_difference = 2 * sigmoid(difference)
        assert np.corrcoef(gradient[:, 0], -of_difference)[0, 1] > 0.9
        assert np.corrcoef(gradient[:, 1], of_difference)[0, 1] > 0.9


def test_gradients_are_seen_by_their_size_and_sign():
    gradient = np.asarray([1.0, -1e-3, 5e-5, -4e-5, 0.0], np.float32)
    expected = [
        [0, 1],
        [np.log(1e-3) / 10, -1],
        [np.log(5e-5) / 10, 1],
        [-1, -4e-5 * np.exp(10)],  # below exp(-10)
        [-1, 0],
    ]
    np.testing.assert_allclose(jax.jit(preprocessed)(gradient), expected, rtol=1e-5)


def test_the_lstm_proposes_a_change_of_each_weight():
    teacher = jax.device_get(jax.jit(partial(new_lstm, sizes=(2, 3, 1)))(jax.random.key(1)))
    gradient = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 2), (2, 1))]
    memory = [RNG.normal(size=(2, 10, width)).astype(np.float32) for width in (3, 1)]
    change, after = jax.jit(proposed)(teacher, gradient, memory)
    flat = np.concatenate([x.ravel() for x in gradient])
    x = np.stack([np.log(np.abs(flat)) / 10, np.sign(flat)], axis=-1)
    for layer, (h, c), found in zip(teacher, memory, after, strict=True):
        gates = x @ layer["input"] + h @ layer["memory"] + layer["bias"]
        enters, stays, new, leaves = np.split(gates, 4, axis=-1)
        c = sigmoid(stays) * c + sigmoid(enters) * np.tanh(new)
        x = sigmoid(leaves) * np.tanh(c)
        np.testing.assert_allclose(found, [x, c], rtol=1e-4, atol=1e-6)
    x = x[:, 0] + np.clip(flat / np.sqrt(np.mean(flat**2)), -1, 1)
    expected = [x[:8].reshape(4, 2), x[8:].reshape(2, 1)]
    for found, wanted in zip(change, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_loss_and_the_lstm_change_by_the_derivatives_of_the_validation_loss_ahead(first):
    with jax.enable_x64(True):
        memory = [0.1 * RNG.normal(size=x.shape) for x in first["memory"]]
        before = as_float64({**first, "memory": memory})

        def ahead(loss):
            return loss_ahead(toy_student(step=4), partial(network_losses, loss), 3)

        @jax.jit
        def updated(state):
            gradient = jax.grad(ahead)(state["loss"])
            change, memory = proposed(state["teacher"], gradient, state["memory"])
            return TINY.update(state, toy_student(step=4)), gradient, change, memory

        after, gradient, change, memory = jax.device_get(updated(before))
        assert_gradient(ahead, before["loss"], gradient)
        for x, found, d in zip(before["loss"], after["loss"], change, strict=True):
            np.testing.assert_allclose(found, x - 0.2 * d, rtol=1e-9)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), after["memory"], memory)

        def value(teacher):
            change, _ = proposed(teacher, gradient, before["memory"])
            return ahead([x - 0.2 * d for x, d in zip(before["loss"], change, strict=True)])

        of_teacher = jax.tree.map(lambda x: x / 0.1, after["optimizer"][0].mu)  # after one step
        assert_gradient(value, before["teacher"], of_teacher)
        for x, found, g in zip(
            *map(jax.tree.leaves, (before["teacher"], after["teacher"], of_teacher)), strict=True
        ):
            big = np.abs(g) > 1e-6  # Adam's first step, as long in every number
            np.testing.assert_allclose((found - x)[big], -0.1 * np.sign(g)[big], rtol=0.02)


def test_between_its_lessons_nothing_changes(first):
    after = jax.jit(lambda state: TINY.update(state, toy_student(step=3)))(first)
    jax.tree.map(np.testing.assert_array_equal, after, first)


@pytest.mark.parametrize("soft", [False, True])
def test_it_keeps_its_dtypes_under_strict_promotion_of_wide_numbers(soft):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        assert check_loss(L2TDLN(), CLASSES, soft=soft)


@pytest.mark.slow
def test_two_devices_teach_as_one():
    devices = [jax.devices()[:n] for n in (1, 2)]
    one, two = (train(SMALL, loss=TINY, model=Plain, devices=x).loss_state for x in devices)
    for name in ("loss", "memory"):
        for x, y in zip(two[name], one[name], strict=True):
            np.testing.assert_allclose(x, y, atol=0.02)
    assert max(np.abs(x).max() for x in one["memory"]) > 0.01  # 0 before its first lesson


@pytest.mark.slow
def test_a_classifier_that_it_teaches_reads_digits():
    config = TrainConfig(
        loss="l2t_dln",
        data=DataConfig(name="digits", val_examples=300),
        width=8,
        batch_size=64,
        epochs=15,
    )
    assert train(config).test_accuracy > 0.95
