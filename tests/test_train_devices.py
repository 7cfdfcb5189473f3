"""A batch divided among the devices of one process."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from optax.losses import softmax_cross_entropy_with_integer_labels

from edl_jax.data import Augmentation
from edl_jax.errors import ConfigError
from edl_jax.losses import LossMethod, load_pretrained
from edl_jax.losses.method import as_method
from edl_jax.runs.devices import device_mesh
from edl_jax.training.classifier import AXIS
from edl_jax.training.learner import Learner
from edl_jax.training.trainer import Trainer
from edl_jax.training.training import load_shared
from tests.test_loss_method import Watched
from tests.test_training import CROSS_ENTROPY, DIGITS, PLAIN


class Loss(Watched):  # whose state is to come out equal too
    inner = staticmethod(load_pretrained())


class Validated(LossMethod):
    """Such a loss, times the loss on the validation images so far; keeps what it saw of them."""

    def __init__(self):
        self.inner = as_method(Loss())

    def init(self, key, num_classes):
        seen = jnp.ones(()), jnp.zeros(num_classes), jnp.zeros(num_classes, jnp.int32)
        return self.inner.init(key, num_classes), seen

    def losses(self, state, logits, labels):
        return state[1][0] * self.inner.losses(state[0], logits, labels)

    def update(self, state, student):
        logits, labels = student.validation()
        nll = softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        seen = nll, logits.std(axis=0), jnp.bincount(labels, length=10)
        return self.inner.update(state[0], student), seen


BASE = dataclasses.replace(
    DIGITS,
    sync_batch_norm=True,
    augmentation=Augmentation(cutmix=1.0),
    ema_decay=0.5,
    warmup_epochs=0,
    data=dataclasses.replace(DIGITS.data, train_examples=192, test_examples=101),
)


def trained(devices, *, loss=Loss, **changes):
    """The state after three steps, the metrics then, and outputs of images."""
    config = dataclasses.replace(BASE, **changes)
    mesh = device_mesh(AXIS, jax.devices()[:devices])
    trainer = Trainer(Learner(config, load_shared(config.data), loss(), mesh))
    state = trainer.init(jax.random.key(0))
    state = trainer.take_steps(state, jax.random.key(1), 3)
    seen = ()
    if not changes:
        seen = trainer.outputs(state, jax.random.key(1), "train", np.arange(2 * 64)[::-1])
    return jax.device_get((state, trainer.evaluate(state, "test"), seen))


def differ(a, b):
    return not np.allclose(a, b, rtol=2e-3, atol=2e-4)


def test_two_devices_train_as_one_does_with_synchronised_statistics():
    """To rounding: sums over the batch are taken in another order.

    So they do with a loss that looks at validation images, of which both see the whole batch.
    """
    data = dataclasses.replace(BASE.data, val_examples=48)
    plain = {"augmentation": PLAIN, "ema_decay": 0.0, "data": data}
    one, two = (trained(devices, loss=Validated, **plain) for devices in (1, 2))
    assert not any(jax.tree.leaves(jax.tree.map(differ, two, one)))
    nll, spread, counts = two[0].loss_state[1]
    assert 0.1 < nll != 1
    assert spread.min() > 0.01
    np.testing.assert_array_equal(counts, np.bincount(load_shared(data).val_labels, minlength=10))


@pytest.mark.slow
def test_so_they_do_with_all_that_a_training_can_have():
    """Streamed images give the same to the bit; statistics of each device alone do not."""
    one, two = trained(1), trained(2)
    assert int(two[0].loss_state["calls"][...]) == 3
    assert float(two[0].loss_state["mean"][...]) > 0
    assert not any(jax.tree.leaves(jax.tree.map(differ, two, one)))
    streamed = trained(2, data=dataclasses.replace(BASE.data, stream=True))
    for a, b in zip(jax.tree.leaves(streamed[:2]), jax.tree.leaves(two[:2]), strict=True):
        np.testing.assert_array_equal(a, b)
    local = trained(2, sync_batch_norm=False)[0]
    assert any(jax.tree.leaves(jax.tree.map(differ, local.params, one[0].params)))


def test_a_batch_that_the_devices_cannot_share_is_refused():
    class Five:
        devices, size = np.array(jax.devices()), 5

    mesh = cast("Mesh", Five())
    with pytest.raises(
        ConfigError, match=r"batch_size is 64 with .* 5 devices; .* multiple of 5\."
    ):
        Learner(DIGITS, load_shared(DIGITS.data), CROSS_ENTROPY, mesh)


def test_images_that_cannot_be_mixed_two_and_two_are_refused():
    mixup = Augmentation(mixup=1.0)
    config = dataclasses.replace(DIGITS, batch_size=3, augmentation=mixup)
    mesh = device_mesh(AXIS, jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"batch_size is 3 .* multiple of 2, as images are mixed"):
        Learner(config, load_shared(config.data), CROSS_ENTROPY, mesh)
