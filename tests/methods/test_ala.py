"""ALA: its loss by NumPy, its policy gradient against all outcomes, and a real training."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import DataConfig, TrainConfig, train
from edl_jax.data import Augmentation
from edl_jax.errors import ConfigError
from edl_jax.losses import Student
from edl_jax.methods.ala import (
    ALA,
    features_of,
    initial_policy,
    matrix_losses,
    matrix_of,
    mean_probabilities,
    policy_gradient,
)
from tests.test_lookahead import SMALL, Linear

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(8, 3)).astype(np.float32), RNG.integers(0, 2, 8, np.int32)
KEY = jax.random.key(0)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_losses_equal_numpys():
    deviation = RNG.uniform(-0.5, 0.5, (3, 3)).astype(np.float32)
    soft = RNG.dirichlet(np.ones(3), 8).astype(np.float32)

    @jax.jit
    def losses(deviation):
        matrix = matrix_of(deviation)
        identity = matrix_losses(jnp.eye(3), LOGITS, LABELS)
        return matrix_losses(matrix, LOGITS, LABELS), matrix_losses(matrix, LOGITS, soft), identity

    matrix = np.eye(3) + deviation * np.where(np.eye(3), 1, 1 / 2)
    log_p = log_softmax(LOGITS.astype(np.float64))
    of_classes, of_soft, of_identity = losses(deviation)
    for found, y in ((of_classes, np.eye(3)[LABELS]), (of_soft, soft)):
        expected = [-4 / (1 + np.exp(-(y[i] @ matrix @ log_p[i]))) for i in range(8)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    p = np.exp(log_p[np.arange(8), LABELS])
    np.testing.assert_allclose(of_identity, -4 * p / (1 + p), rtol=1e-5)


def test_mean_probabilities_and_features_are_those_of_the_classes():
    otherwise, deviation = RNG.uniform(size=(2, 3, 3)).astype(np.float32)

    @jax.jit
    def seen():
        confusion = mean_probabilities(LOGITS, LABELS, otherwise)
        return confusion, features_of(deviation, confusion, 0.5, -1.0, confusion - otherwise, 2.0)

    found, features = seen()
    p = np.exp(log_softmax(LOGITS))
    expected = [p[LABELS == 0].mean(axis=0), p[LABELS == 1].mean(axis=0), otherwise[2]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    change = found - otherwise
    pair = [deviation, deviation.T, found, found.T, change, change.T]
    expected = [*(x[0, 1] for x in pair), 0, 0.5, -1, 2]
    np.testing.assert_allclose(features[0, 1], expected, rtol=1e-6)
    assert features[1, 1, 6] == 1  # on the diagonal


@pytest.mark.parametrize(("num_classes", "children"), [(1, 3), (2, 2)])
def test_the_policy_gradient_is_unbiased_on_a_bandit(num_classes, children):
    """Its mean over all outcomes is the gradient of the expected reward, by differences."""
    rng = np.random.default_rng(num_classes)
    with jax.enable_x64(True):
        shape = num_classes, num_classes, 10
        features = rng.normal(size=shape)
        shapes = jax.eval_shape(lambda: initial_policy(KEY, 4))
        policy = {name: rng.normal(size=x.shape) for name, x in shapes.items()}
        single = np.asarray([*itertools.product(range(3), repeat=num_classes**2)])
        rewards = rng.normal(size=len(single))  # of every action
        chosen = np.asarray([*itertools.product(range(len(single)), repeat=children)])

        def probabilities(policy):
            hidden = np.maximum(features @ policy["hidden"] + policy["hidden_bias"], 0)
            output = hidden @ policy["output"] + policy["output_bias"]
            p = np.exp(log_softmax(output)).reshape(-1, 3)
            return p[np.arange(num_classes**2), single].prod(axis=1)

        @jax.jit
        def mean(weights, actions, rewards):
            gradients = jax.vmap(policy_gradient, (None, None, 0, 0))(
                policy, features, actions, rewards
            )
            return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), gradients)

        weights = probabilities(policy)[chosen].prod(axis=1)
        np.testing.assert_allclose(weights.sum(), 1)
        actions = single[chosen].reshape(*chosen.shape, num_classes, num_classes)
        found = mean(weights, actions, rewards[chosen])
        for name, values in policy.items():
            for index in np.ndindex(values.shape):
                sides = []
                for change in (1e-5, -1e-5):
                    values[index] += change
                    sides.append(probabilities(policy) @ rewards)
                    values[index] -= change
                expected = (sides[0] - sides[1]) / 2e-5
                np.testing.assert_allclose(found[name][index], expected, rtol=1e-6, atol=1e-8)


def test_the_policy_finds_the_changes_that_are_rewarded():
    def validation():
        return LOGITS, LABELS

    def lookahead(losses, steps):
        loss = losses(LOGITS, LABELS).mean()  # the smaller, the more probable is the label, 1
        return jnp.stack([loss, 0.0])[None], np.ones(1, np.int32)

    method = ALA(every=2, metric="nll", learning_rate=0.03)

    @jax.jit
    def learned(steps):
        def update(step, state):
            student = Student(step, step / 80, LOGITS, LABELS, validation, lookahead)
            return method.update(state, student)

        deviation = jax.lax.fori_loop(1, steps + 1, update, method.init(KEY, 3))["deviation"]
        return deviation, matrix_losses(matrix_of(deviation), LOGITS, LABELS).mean()

    nothing, before = learned(1)  # no multiple of `every`
    np.testing.assert_array_equal(nothing, 0)
    deviation, after = learned(80)
    assert after < before - 0.3
    assert 0.3 < np.abs(deviation).max() <= 0.5


@pytest.mark.parametrize("wrong", [{"children": 1}, {"limit": 1.0}, {"metric": "loss"}])
def test_options_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"ALA.{next(iter(wrong))} is"):
        ALA(**wrong)


@pytest.mark.slow
def test_two_devices_train_with_it():
    config = dataclasses.replace(SMALL, augmentation=Augmentation(crop=False, mixup=0.2))
    loss = ALA(metric="nll", every=2, steps=1, children=2)
    result = train(config, loss=loss, model=Linear, devices=jax.devices()[:2])
    deviation = np.asarray(result.loss_state["deviation"])
    assert np.isfinite(deviation).all()
    assert np.abs(deviation).max() > 0


@pytest.mark.slow
def test_a_classifier_learns_digits():
    data = DataConfig(name="digits", val_examples=256)
    config = TrainConfig(loss="ala", data=data, model="resnet8", width=8, epochs=12, batch_size=64)
    result = train(config, devices=jax.devices()[:1])
    assert result.test_accuracy > 0.95
