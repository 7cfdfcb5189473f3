"""L2T-DLF: its formulas, its teacher's derivatives, and that it trains."""

from functools import partial

import jax
import numpy as np
import pytest

from edl_jax import TrainConfig, train
from edl_jax.data.config import DataConfig
from edl_jax.losses.method import check_loss
from edl_jax.methods.l2t_dlf import L2TDLF, coefficients, measured, taught_losses
from tests.methods.toy_student import CLASSES, as_float64, assert_gradient, loss_ahead, toy_student
from tests.test_lookahead import SMALL, Plain

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(5, CLASSES)), np.asarray([0, 3, 1, 1, 2])
SOFT = RNG.dirichlet(np.ones(CLASSES), size=5)


def p_of(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def narrow(*arrays):
    return [
        x.astype(np.float32 if np.issubdtype(x.dtype, np.floating) else np.int32) for x in arrays
    ]


@pytest.fixture(scope="module")
def first():
    """The first state, on the host."""
    return jax.device_get(jax.jit(partial(L2TDLF().init, num_classes=CLASSES))(jax.random.key(0)))


@pytest.fixture(scope="module")
def learned(first):
    """A state whose teacher has learned something."""
    teacher = {name: 0.3 * RNG.normal(size=x.shape) for name, x in first["teacher"].items()}
    return {**first, "teacher": jax.tree.map(np.float32, teacher)}


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_the_loss_is_the_papers(labels):
    matrix, bias = RNG.normal(size=(CLASSES, CLASSES)), RNG.normal(size=CLASSES)
    weights = np.eye(CLASSES)[labels] if labels.ndim == 1 else labels
    expected = [
        -4 / (1 + np.exp(-y @ (matrix.T @ np.log(p) + bias)))
        for p, y in zip(p_of(LOGITS), weights, strict=True)
    ]
    found = jax.jit(taught_losses)(*narrow(matrix, bias, LOGITS, labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_first_loss_has_cross_entropys_gradient_at_a_right_prediction(first):
    p = np.asarray([1e-3, 0.25, 0.9, 1 - 1e-6])
    logits = np.log(np.stack([p, *[(1 - p) / 3] * 3], axis=-1)).astype(np.float32)
    labels = np.zeros(4, np.int32)

    def total(logits, labels):
        losses = L2TDLF().losses(first, logits, labels)
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(logits, labels)
    np.testing.assert_allclose(losses, -4 * p / (1 + p), rtol=1e-5)
    # Of `-log p_y` it is `-(1 - p_y)`; the other factor is 1 at `p_y = 1`.
    expected = -(1 - p) * 4 * p / (1 + p) ** 2
    np.testing.assert_allclose(gradient[:, 0], expected, rtol=1e-3, atol=1e-7)


def test_the_teacher_weighs_its_matrices_by_what_it_sees(learned):
    teacher = learned["teacher"]
    keys, matrices, biases = (teacher[x] for x in ("keys", "matrices", "biases"))
    seen = RNG.normal(size=6)
    weights = p_of(np.asarray(keys, np.float64) @ seen)
    matrix, bias = jax.jit(coefficients)(teacher, *narrow(seen))
    expected = np.eye(CLASSES) + sum(w * m for w, m in zip(weights, matrices, strict=True))
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-6)
    expected = sum(w * b for w, b in zip(weights, biases, strict=True))
    np.testing.assert_allclose(bias, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_what_the_teacher_sees(labels):
    p = p_of(LOGITS)
    weights = np.eye(CLASSES)[labels] if labels.ndim == 1 else labels
    of_label = weights.argmax(axis=-1)
    others = [np.delete(row, y).max() for row, y in zip(p, of_label, strict=True)]
    loss = -np.sum(weights * np.log(p), axis=-1).mean() / np.log(CLASSES)
    accuracy = np.mean(p.argmax(axis=-1) == of_label)
    margin = np.mean(p[np.arange(5), of_label] - others)
    found = jax.jit(measured)(*narrow(LOGITS, labels))
    np.testing.assert_allclose(found, [loss, accuracy, margin], rtol=1e-5)


def test_a_teacher_learns_by_the_derivative_of_the_validation_loss_ahead(learned):
    method = L2TDLF(steps=3, every=2, learning_rate=0.1)
    with jax.enable_x64(True):
        before = as_float64(learned)

        @jax.jit
        def updated(state):
            student = toy_student(step=4)
            seen = [measured(*x) for x in (student.validation(), student[2:4])]
            return method.update(state, student), seen

        after, (held_out, now) = jax.device_get(updated(before))
        np.testing.assert_allclose(after["seen"], [0.3, *before["train"], *held_out[:2]])
        np.testing.assert_allclose(after["train"], 0.9 * before["train"] + 0.1 * now)

        def value(teacher):
            loss = partial(taught_losses, *coefficients(teacher, after["seen"]))
            return loss_ahead(toy_student(step=4), loss, 3)

        gradient = jax.tree.map(lambda x: x / 0.1, after["optimizer"][0].mu)  # after one step
        assert_gradient(value, before["teacher"], gradient)
        for name, x in before["teacher"].items():
            change = after["teacher"][name] - x  # Adam's first step, as long in every number
            np.testing.assert_allclose(change, -0.1 * np.sign(gradient[name]), rtol=1e-3)


def test_between_its_lessons_a_teacher_only_watches(first):
    updated = jax.jit(lambda state: L2TDLF(every=2).update(state, toy_student(step=3)))
    after, before = dict(updated(first)), dict(first)
    assert np.abs(after.pop("train") - before.pop("train")).max() > 0
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("soft", [False, True])
def test_it_keeps_its_dtypes_under_strict_promotion_of_wide_numbers(soft):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        assert check_loss(L2TDLF(), CLASSES, soft=soft)


@pytest.mark.slow
def test_two_devices_teach_as_one():
    loss = L2TDLF(steps=2, every=2)
    devices = [jax.devices()[:n] for n in (1, 2)]
    one, two = (train(SMALL, loss=loss, model=Plain, devices=x).loss_state for x in devices)
    np.testing.assert_allclose(two["seen"], one["seen"], rtol=1e-3)
    moments = [x["optimizer"][0].mu["matrices"] for x in (two, one)]
    np.testing.assert_allclose(*moments, rtol=1e-2, atol=1e-3 * np.abs(moments[1]).max())
    assert np.abs(one["teacher"]["matrices"]).max() > 1e-3


@pytest.mark.slow
def test_a_classifier_that_it_teaches_reads_digits():
    config = TrainConfig(
        loss="l2t_dlf",
        data=DataConfig(name="digits", val_examples=300),
        width=8,
        batch_size=64,
        epochs=8,
    )
    result = train(config)
    assert result.test_accuracy > 0.95
    assert np.abs(result.loss_state["teacher"]["matrices"]).max() > 0.01
