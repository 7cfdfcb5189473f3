"""Training works with JAX's switches on: the same results, and state that stays float32."""

import contextlib
import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edl_jax import train
from edl_jax.data import Augmentation
from edl_jax.models import MODELS
from edl_jax.models.resnet import ResNet
from edl_jax.models.vit import VisionTransformer
from edl_jax.runs.devices import device_mesh, on_every_device
from edl_jax.training.classifier import AXIS
from edl_jax.training.learner import Learner
from edl_jax.training.optimizers import OptimizerConfig
from edl_jax.training.training import load_shared
from tests.test_training import DIGITS

EVERYTHING = Augmentation(cutout=2, mixup=1.0, cutmix=1.0)
SMALL = dataclasses.replace(
    DIGITS,
    batch_size=32,
    epochs=2,
    augmentation=EVERYTHING,
    ema_decay=0.5,
    data=dataclasses.replace(DIGITS.data, train_examples=64, test_examples=50),
    optimizer=dataclasses.replace(DIGITS.optimizer, clip_norm=1.0),
)
SHAPES = {
    "sgd": partial(ResNet, (1, 1), width=4),
    "plain": partial(ResNet, (1, 1), width=4),
    "bottleneck": partial(ResNet, (1, 1), width=4, projection=True, bottleneck=True),
    "vit": partial(VisionTransformer, width=12, depth=1, heads=1, patch=4),
}
SETTINGS = {
    "sgd": {},
    "plain": {"optimizer": OptimizerConfig("lamb")},
    "bottleneck": {"head_scale": 30.0, "sync_batch_norm": True},
    "vit": {"optimizer": OptimizerConfig("adamw")},
}


def loss(logits, labels):
    return optax.losses.softmax_cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("model", "precision"),
    [("sgd", "bfloat16"), ("plain", "bfloat16"), ("bottleneck", "float32"), ("vit", "bfloat16")],
)
def test_a_step_and_an_evaluation_of_every_model_with_switches_on(model, precision, monkeypatch):
    """Traced only: rank promotion is refused and dtypes are decided then."""
    monkeypatch.setitem(MODELS, "tiny", SHAPES[model])
    config = dataclasses.replace(SMALL, precision=precision, **SETTINGS[model])
    dataset, mesh = load_shared(config.data), device_mesh(AXIS, jax.devices()[:1])
    images, labels = jnp.zeros((32, 8, 8, 1), jnp.uint8), jnp.zeros(32, jnp.int32)

    def traced():
        """The shapes and dtypes of the state before and after and of the sums; and all arrays."""
        learner = Learner(config, dataset, loss, mesh)
        of_batch = lambda state, key, batch: learner.step(state, key, lambda step: batch)  # noqa: E731
        step, sums = (on_every_device(x, mesh) for x in (of_batch, learner.sums))
        before = jax.eval_shape(learner.init, jax.random.key(0))
        key = jax.random.key(1)
        step, after = jax.make_jaxpr(step, return_shape=True)(before, key, (images, labels))
        sums, found = jax.make_jaxpr(sums, return_shape=True)(before, (images, labels))
        shapes = jax.tree.map(lambda x: f"{x.dtype}{x.shape}", (before, after, found))
        return shapes, f"{step} {sums}"

    shapes, _ = traced()
    assert shapes[0] == shapes[1]
    # The relatives of Adam in optax, and the attention of JAX in bfloat16, are not strict.
    dtypes = jax.numpy_dtype_promotion("standard" if model in ("plain", "vit") else "strict")
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), dtypes:
        switched, arrays = traced()
    assert switched == shapes
    assert not re.search(r"f64\[\d", arrays)  # single numbers there are, such as the learning rate


def test_a_training_is_the_same_with_all_switches_on():
    plain = train(SMALL, loss=loss)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.debug_nans(True))
        switched = train(SMALL, loss=loss)
    assert {x.dtype for x in jax.tree.leaves(switched.params)} == {np.dtype(np.float32)}
    for a, b in zip(jax.tree.leaves(switched.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for name in ("train_loss", "nll", "learning_rate"):
        found = [row[name] for row in switched.history]
        np.testing.assert_allclose(found, [row[name] for row in plain.history], rtol=1e-5)
