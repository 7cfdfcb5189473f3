"""Optimizers, and what changes a step: decay, clipping, averages, mixing."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from edl_jax.data import Augmentation
from edl_jax.errors import ConfigError
from edl_jax.models import MODELS
from edl_jax.models.vit import VisionTransformer
from edl_jax.training.optimizers import OptimizerConfig, make_schedule
from edl_jax.training.training import load_shared
from tests.baseline_losses import Tempered
from tests.test_training import CROSS_ENTROPY, DIGITS, PLAIN, assert_close, trainer_of

TREE = {"model": {"w": np.float32([3, -4])}, "loss": {"shape": np.float32([2])}}
GRADIENT = jax.tree.map(np.ones_like, TREE)


@pytest.fixture(scope="module")
def dataset():
    return load_shared(dataclasses.replace(DIGITS.data, train_examples=256))


@pytest.fixture
def small_vit(monkeypatch):
    model = partial(VisionTransformer, width=12, depth=1, heads=1, patch=4)
    monkeypatch.setitem(MODELS, "vit_tiny", model)
    return dataclasses.replace(
        DIGITS,
        model="vit_tiny",
        augmentation=PLAIN,
        epochs=1,
        data=dataclasses.replace(DIGITS.data, train_examples=256),
    )


def make_optimizer(name, options, learning_rate, *, weight_decay=0.0, clip_norm=None):
    return OptimizerConfig(name, options, weight_decay, clip_norm).make(learning_rate)


def updates(optimizer, gradient=GRADIENT):
    found = jax.jit(lambda x, params: optimizer.update(x, optimizer.init(params), params)[0])
    return jax.device_get(found(gradient, TREE))


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "novograd"])
def test_decay_is_an_l2_penalty_where_the_optimizer_has_none_and_spares_the_loss(name):
    found = updates(make_optimizer(name, {}, 0.5, weight_decay=0.1))
    plain = getattr(optax, name)(0.5)
    penalised = {"model": {"w": np.float32([1.3, 0.6])}, "loss": {"shape": np.float32([1])}}
    assert_close(found, updates(plain, penalised), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb", "lars", "adadelta"])
def test_decay_is_the_optimizers_own_where_it_has_one_and_spares_the_loss(name):
    with_decay = updates(make_optimizer(name, {}, 0.5, weight_decay=0.1))
    without = updates(make_optimizer(name, {}, 0.5))
    assert_close(with_decay["loss"], without["loss"], rtol=0)
    assert np.all(with_decay["model"]["w"] != without["model"]["w"])
    if name == "adamw":
        expected = without["model"]["w"] - 0.5 * 0.1 * TREE["model"]["w"]
        np.testing.assert_allclose(with_decay["model"]["w"], expected, rtol=1e-6)


def test_an_optimizer_that_keeps_a_random_key_is_refused():
    with pytest.raises(ConfigError, match=r"'noisy_sgd' .* keeps a random key"):
        make_optimizer("noisy_sgd", {"key": 0}, 0.1)


def test_the_gradient_is_clipped_before_anything_else():
    found = updates(make_optimizer("sgd", {}, 1.0, clip_norm=0.1, weight_decay=0.1))
    size = 0.1 / np.sqrt(3)
    w = np.array([-size - 0.3, -size + 0.4])
    expected = {"model": {"w": w}, "loss": {"shape": np.array([-size])}}
    assert_close(found, expected, rtol=1e-5)


def test_schedule():
    rate = make_schedule(0.4, warmup_steps=4, total_steps=12)
    expected = [0.1, 0.2, 0.3, *(0.2 + 0.2 * np.cos(np.pi * np.arange(10) / 9))]
    np.testing.assert_allclose([rate(step) for step in range(13)], expected, atol=1e-7)
    assert make_schedule(0.4, warmup_steps=0, total_steps=8)(0) == pytest.approx(0.4)
    assert np.isfinite(make_schedule(0.4, warmup_steps=8, total_steps=8)(8))


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (1, 2), (2, 2), (3, 9)])
def test_no_step_has_a_rate_of_0_and_the_peak_is_reached(warmup, total):
    schedule = make_schedule(0.4, warmup_steps=warmup, total_steps=total)
    rates, peak = np.array([schedule(step) for step in range(total)]), max(warmup - 1, 0)
    assert rates.min() > 0
    np.testing.assert_allclose(rates[:warmup] * warmup, 0.4 * np.arange(1, warmup + 1), rtol=1e-6)
    np.testing.assert_allclose(rates[peak], 0.4, rtol=1e-6)
    assert (np.diff(rates[peak:]) < 0).all()


def test_a_training_of_a_single_step_trains(dataset):
    config = dataclasses.replace(DIGITS, epochs=1, batch_size=256, augmentation=PLAIN)
    trainer, key = trainer_of(config, dataset), jax.random.key(0)
    before = jax.device_get(trainer.init(key).params)
    after = jax.device_get(trainer.take_steps(trainer.init(key), key, 1).params)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_the_average_is_evaluated_and_follows_the_weights(small_vit, dataset):
    config = dataclasses.replace(small_vit, ema_decay=0.5, warmup_epochs=0, learning_rate=1e-3)
    trainer, key = trainer_of(config, dataset), jax.random.key(0)
    state = trainer.init(key)
    average = jax.device_get(state.params["model"])
    for step in range(4):
        state = trainer.take_steps(state, key, 1)
        decay, params = min(0.5, (1 + step) / (10 + step)), jax.device_get(state.params["model"])
        average = jax.tree.map(
            lambda a, p, decay=decay: decay * a + (1 - decay) * p, average, params
        )
    assert_close(state.average[0], average, rtol=1e-5, atol=1e-6)
    swapped = state._replace(params={**state.params, "model": state.average[0]}, average=())
    plain = trainer_of(dataclasses.replace(config, ema_decay=0.0), dataset)
    assert trainer.evaluate(state, "test") == plain.evaluate(swapped, "test")


def test_parameters_of_a_loss_are_trained_too(small_vit, dataset):
    loss = Tempered()
    trainer, key = trainer_of(small_vit, dataset, loss), jax.random.key(0)
    state = trainer.take_steps(trainer.init(key), key, 4)
    before, after = nnx.state(loss), state.params["loss"]
    assert all(
        np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )
    assert_close(nnx.state(loss), nnx.state(Tempered()), rtol=0)  # given, and left as it was


class ShiftedCrossEntropy(nnx.Module):
    """A loss with a parameter, and with arrays that are none."""

    def __init__(self):
        self.temperature = nnx.Param(jnp.ones(()))
        self.prior = nnx.Variable(jnp.full(10, -2.0))
        self.weights = jnp.linspace(0.5, 1.5, 10)
        self.order = jnp.arange(10)

    def __call__(self, logits, labels):
        shifted = (logits * self.temperature[...] + self.prior[...])[..., self.order]
        return self.weights[labels] * CROSS_ENTROPY(shifted, labels)


def test_only_the_params_of_a_loss_are_trained(small_vit, dataset):
    loss = ShiftedCrossEntropy()
    trainer, key = trainer_of(small_vit, dataset, loss), jax.random.key(0)
    state = trainer.take_steps(trainer.init(key), key, 4)
    (temperature,) = jax.tree.leaves(state.params["loss"])
    assert temperature != 1
    nnx.update(loss, state.params["loss"])
    assert loss.temperature[...] == temperature


def test_mixing_gives_soft_labels_that_sum_to_1(small_vit, dataset):
    seen = []

    def recording(logits, labels):
        jax.debug.callback(lambda y: seen.append(y), labels)
        return optax.losses.softmax_cross_entropy(logits, labels)

    config = dataclasses.replace(small_vit, augmentation=Augmentation(mixup=1.0, cutmix=1.0))
    trainer, key = trainer_of(config, dataset, recording), jax.random.key(0)
    jax.block_until_ready(trainer.take_steps(trainer.init(key), key, 4))
    labels = np.concatenate(seen)
    assert labels.shape == (4 * 64, 10)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    assert ((labels > 0).sum(axis=1) == 2).mean() > 0.5


def test_bfloat16_keeps_float32_state_and_learns_alike(small_vit, dataset):
    key, values = jax.random.key(0), {}
    for precision in ("float32", "bfloat16"):
        config = dataclasses.replace(small_vit, precision=precision)
        trainer = trainer_of(config, dataset, CROSS_ENTROPY)
        state = trainer.take_steps(trainer.init(key), key, 4)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        values[precision] = float(state.loss_sum) / 4
    assert values["bfloat16"] == pytest.approx(values["float32"], rel=0.02)
    assert values["bfloat16"] != values["float32"]
