"""What a loss sees of the steps to come, and its derivatives through them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from edl_jax import LossMethod
from edl_jax.data import Augmentation
from edl_jax.errors import ConfigError
from edl_jax.runs.devices import device_mesh
from edl_jax.training import train
from edl_jax.training.classifier import AXIS
from edl_jax.training.learner import Learner
from edl_jax.training.trainer import Trainer
from edl_jax.training.training import load_shared
from tests.test_training import CROSS_ENTROPY, DIGITS, PLAIN

SMALL = dataclasses.replace(
    DIGITS,
    batch_size=32,
    epochs=2,
    augmentation=PLAIN,
    data=dataclasses.replace(DIGITS.data, train_examples=128, test_examples=10, val_examples=32),
)
STEPS, TOY = 3, (1.3, 0.2)  # steps ahead; factor of the logits, and label smoothing


class Linear(nnx.Module):
    """A hidden layer in float64 where that is enabled, with running means."""

    def __init__(self, *, rngs, num_classes, in_channels):
        del in_channels
        wide = {"param_dtype": jnp.result_type(float), "rngs": rngs}
        self.hidden = nnx.Linear(64, 5, **wide)
        self.mean = nnx.BatchStat(jnp.zeros(5, jnp.result_type(float)))
        self.deterministic = False  # as of a batch norm
        self.head = nnx.Linear(5, num_classes, **wide)

    def __call__(self, images):
        x = self.hidden(images.reshape(len(images), -1).astype(jnp.result_type(float)))
        if self.deterministic:
            return self.head(jnp.tanh(x - self.mean[...]))
        self.mean[...] = 0.5 * (self.mean[...] + x.mean(axis=0))
        return self.head(jnp.tanh(x - x.mean(axis=0)))


class Plain(Linear):
    """Without the mean of a batch, which is a device's own."""

    def __call__(self, images):
        x = self.hidden(images.reshape(len(images), -1))
        return self.head(jnp.tanh(x))


def first_of(logits):
    """The least of each class, in whatever order the images are."""
    return jnp.sort(logits, axis=0)[:8]


def smoothed(phi, logits, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), phi[1])
    return optax.losses.softmax_cross_entropy(phi[0] * logits, targets)


class Looking(LossMethod):
    """Keeps the loss on validation images `STEPS` ahead, and its gradient by what trains there."""

    def init(self, key, num_classes):
        dtype = jnp.result_type(float)
        zeros = dict.fromkeys(("gradient", "square"), jnp.zeros(2, dtype))
        empty = {"phi": jnp.asarray(TOY, dtype), **zeros}
        return empty | {"value": jnp.zeros((), dtype), "logits": jnp.zeros((8, 10), dtype)}

    def losses(self, state, logits, labels):
        return smoothed(state["phi"], logits, labels)

    def update(self, state, student):
        def ahead(phi):
            logits, labels = student.lookahead(lambda x, y: smoothed(phi, x, y), STEPS)
            logits = logits.astype(phi.dtype)
            return CROSS_ENTROPY(logits, labels).mean(), logits

        (value, logits), gradient = jax.value_and_grad(ahead, has_aux=True)(state["phi"])
        found = {
            "value": value,
            "gradient": gradient,
            "square": gradient**2,
            "logits": first_of(logits),
        }
        return {**state, **found}


def stepped(dataset, config=SMALL, devices=1, steps=1, model=Linear):
    """The learner, and its state after some steps in which the loss looked ahead."""
    mesh = device_mesh(AXIS, jax.devices()[:devices])
    learner = Learner(config, dataset, Looking(), mesh, model=model)
    run, key = Trainer(learner).of_seed(0)
    state = run.take_steps(run.init(key), run.key, steps)
    return learner, state


@pytest.fixture(scope="module")
def dataset():
    return load_shared(SMALL.data)


@pytest.mark.parametrize("augmentation", [PLAIN, Augmentation(flip=True)])
def test_the_loss_sees_what_the_classifier_will_be(dataset, augmentation):
    config = dataclasses.replace(SMALL, augmentation=augmentation)
    expected = stepped(dataset, config, steps=1)[1].loss_state["logits"]
    learner, state = stepped(dataset, config, steps=1 + STEPS)
    found = first_of(learner.evaluated_logits(state, dataset.val_images))
    # All 32 validation images make a batch.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    before = first_of(learner.evaluated_logits(stepped(dataset, config)[1], dataset.val_images))
    assert np.abs(before - expected).max() > 0.01


def test_gradients_through_the_classifiers_steps_are_those_of_differences_in_float64():
    with jax.enable_x64(True):
        dataset = load_shared(SMALL.data)
        found = stepped(dataset)[1].loss_state["gradient"]
        assert found.dtype == np.float64
        for index in range(2):
            values = []
            for side in (1, -1):
                # Differences of the steps ahead alone: the step before has the loss of TOY.
                values.append(looked(dataset, index, side * 1e-5))
            expected = (values[0] - values[1]) / 2e-5
            np.testing.assert_allclose(found[index], expected, rtol=1e-6)
            assert abs(expected) > 1e-3


def looked(dataset, index, change):
    """The value ahead, with a number of the loss changed there."""

    class Changed(Looking):
        def update(self, state, student):
            phi = state["phi"].at[index].add(change)
            logits, labels = student.lookahead(lambda x, y: smoothed(phi, x, y), STEPS)
            value = CROSS_ENTROPY(logits.astype(phi.dtype), labels).mean()
            return {**state, "value": value}

    learner = Learner(SMALL, dataset, Changed(), device_mesh(AXIS, jax.devices()[:1]), model=Linear)
    run, key = Trainer(learner).of_seed(0)
    return float(run.take_steps(run.init(key), run.key, 1).loss_state["value"])


def test_several_devices_see_the_same(dataset):
    plain = partial(stepped, dataset, model=Plain)
    one, two = (plain(devices=n)[1].loss_state for n in (1, 2))
    for name in ("value", "gradient", "logits"):
        np.testing.assert_allclose(two[name], one[name], rtol=2e-4, atol=1e-6, err_msg=name)
    # A mean of squares is the square of the mean only where all are equal, so that what a teacher
    # makes of its derivatives is the same on every device.
    np.testing.assert_allclose(two["square"], np.square(two["gradient"]), rtol=1e-4)


def test_a_look_ahead_needs_validation_images():
    config = dataclasses.replace(SMALL, data=dataclasses.replace(SMALL.data, val_examples=0))
    with pytest.raises(ConfigError, match="Looking looks at validation images, of which there"):
        train(config, loss=Looking(), model=Linear)
