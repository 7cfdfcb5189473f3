"""Models, data and optimizers given to `train` as objects, or by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from edl_jax.data import ArraySource, DataConfig
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.losses.method import as_words
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.folder import read_json
from edl_jax.training import TrainConfig, make_trainer, train
from edl_jax.training.optimizers import LOSS, MODEL, OptimizerConfig, make_optimizer
from tests.test_training import assert_close

CONFIG = TrainConfig(epochs=1, batch_size=16, learning_rate=0.05, loss="cross_entropy")


class Linear(nnx.Module):
    """The smallest classifier of images 8 by 8."""

    def __init__(self, rngs, num_classes, in_channels):
        self.head = nnx.Linear(64 * in_channels, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.head(images.reshape(len(images), -1)).astype(jnp.float32)


def source(first=0):
    labels = np.arange(32) % 2
    images = np.broadcast_to(255 * labels[:, None, None, None], (32, 8, 8, 1)).astype(np.uint8)
    images = images.copy()
    images[0] += np.uint8(first)
    return ArraySource(
        "ours", "of our own", ("black", "white"), dict.fromkeys(("train", "test"), (images, labels))
    )


def test_a_model_data_and_an_optimizer_of_your_own_are_trained_and_known(tmp_path):
    given = {"model": Linear, "data": source(), "optimizer": optax.adam}
    config = dataclasses.replace(CONFIG, epochs=4)
    result = train(config, **given, run_dir=tmp_path)
    assert result.test_accuracy == 1
    assert result.params["head"]["kernel"].shape == (64, 2)
    found = read_json(tmp_path / "config.json")
    assert found["model"] == "Linear"
    assert found["optimizer"].startswith("adam")
    assert found["data"]["name"] == found["train"]["data"]["name"] == "ours"
    assert train(config, **given, run_dir=tmp_path).history == result.history
    for name, other in (("data", source(1)), ("optimizer", optax.sgd(0.1)), ("model", "resnet8")):
        with pytest.raises(RunFolderError, match="another configuration"):
            train(config, **{**given, name: other}, run_dir=tmp_path)


class Noisy(nnx.Module):
    """Drops inputs, counts its calls, and keeps random streams and what it drew of them last."""

    def __init__(self, rngs, num_classes, in_channels):
        self.head = nnx.Linear(64 * in_channels, num_classes, rngs=rngs)
        self.dropout, self.rngs = nnx.Dropout(0.5, rngs=rngs), rngs
        self.calls, self.drawn = (
            nnx.Variable(jnp.zeros((), jnp.int32)),
            nnx.BatchStat(jnp.zeros(())),
        )

    def __call__(self, images):
        self.calls[...] += 1
        self.drawn[...] = jax.random.uniform(self.rngs(), dtype=jnp.float32)
        return self.head(self.dropout(images.reshape(len(images), -1))).astype(jnp.float32)


def test_a_model_that_draws_at_random_carries_its_streams(tmp_path, monkeypatch):
    """On two devices, each with noise of its own, with an average, and through checkpoints."""
    config = dataclasses.replace(CONFIG, epochs=2, ema_decay=0.5)
    given = {"model": Noisy, "data": source()}
    whole = train(config, **given, run_dir=tmp_path / "whole")
    save = Checkpoints.save

    def once(self, *args, **options):
        save(self, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", once)
    with pytest.raises(KeyboardInterrupt):
        train(config, **given, run_dir=tmp_path / "parts")
    monkeypatch.undo()
    parts = train(config, **given, run_dir=tmp_path / "parts")
    assert_close(*(as_words((x.params, x.statistics)) for x in (whole, parts)), rtol=0)

    key, _ = jax.random.split(jax.random.key(config.seed))
    model = Noisy(nnx.Rngs(key), 2, 1)
    stream, average = model.rngs.default, 0.0
    for step in range(4):
        folded = [jax.random.fold_in(stream.key[...], device) for device in range(2)]
        keys = [jax.random.fold_in(key, stream.count[...] + step) for key in folded]
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * np.mean([jax.random.uniform(x) for x in keys])
    first = int(stream.count[...]), jax.random.key_data(stream.key[...])
    nnx.update(model, parts.params, parts.statistics)
    assert model.drawn[...] == pytest.approx(average, rel=1e-5)
    assert (model.calls.dtype, int(model.calls[...])) == (jnp.int32, 4)
    assert (int(stream.count[...]), int(model.dropout.rngs.count[...])) == (first[0] + 4, 4)
    np.testing.assert_array_equal(jax.random.key_data(stream.key[...]), first[1])


def test_a_trainer_takes_the_same_and_names_and_a_configuration_stand_for_data():
    small = DataConfig("digits", train_examples=16, test_examples=8)
    given = {"model": Linear, "optimizer": optax.adam}
    (by_config,) = make_trainer(CONFIG, **given, data=small)([CONFIG.seed])
    base = dataclasses.replace(CONFIG, data=dataclasses.replace(small, name="auto"))
    assert train(base, **given, data="digits").test_nll == by_config.test_nll
    assert by_config.params["head"]["kernel"].shape == (64, 10)


def test_an_optimizer_is_taken_as_it_is_or_made_of_the_schedule():
    params = {MODEL: jnp.ones(2), LOSS: jnp.ones(2)}

    def updated(given):
        optimizer = make_optimizer(OptimizerConfig(), lambda step: 0.5, given, params)
        return optimizer.update(params, optimizer.init(params), params)[0][MODEL]

    np.testing.assert_allclose(updated(optax.sgd), -0.5)
    np.testing.assert_allclose(updated(optax.sgd(0.1)), -0.1)


def following_the_value():
    """Takes the parameters to what they were and the value of the loss."""
    init = lambda params: optax.EmptyState()  # noqa: E731
    return optax.GradientTransformationExtraArgs(
        init,
        lambda updates, state, params, *, value, **_: (
            jax.tree.map(lambda x: jnp.full_like(x, value), updates),
            state,
        ),
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        following_the_value(),
        optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
        optax.polyak_sgd(),
    ],
)
def test_an_optimizer_is_told_the_mean_loss_of_the_step(optimizer):
    """Of all devices; a single step is taken, of which it is the row's."""
    config = dataclasses.replace(CONFIG, batch_size=32)
    result = train(config, model=Linear, data=source(), optimizer=optimizer)
    if optimizer.update.__module__ == __name__:
        value = result.history[0]["train_loss"]
        np.testing.assert_allclose(result.params["head"]["bias"][...], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": lambda: None}, "cannot be used .*expected a function or class that takes rngs"),
        (
            {"model": lambda rngs, num_classes, in_channels: Linear(rngs, 3, 1)},
            r"gives \(2, 3\) for 2 images.* logits \[batch, 2\]",
        ),
        ({"model": "resnet9"}, "model is 'resnet9'"),
        ({"model": 3}, "model 3 cannot be used"),
        ({"data": 3}, "data is 3; expected an instance of DataConfig"),
        ({"optimizer": 3}, "optimizer is 3; expected a GradientTransformation"),
        ({"optimizer": lambda schedule: 3}, "expected a GradientTransformation"),
        ({"optimizer": lambda: optax.sgd(0.1)}, r"optimizer is <.*positional argument.*\)\.$"),
        ({"optimizer": optax.lbfgs}, "optimizer is <function lbfgs .*'grad' and 'value_fn'"),
        ({"optimizer": optax.scale_by_adam}, "<function scale_by_adam .*expected a Gradient"),
        ({"optimizer": optax.add_noise(0.1, 0.1, jax.random.key(0))}, "it keeps a random key"),
    ],
)
def test_what_cannot_be_used_is_refused(given, message):
    for start in (train, make_trainer):
        with pytest.raises(ConfigError, match=message):
            start(CONFIG, **{"data": source(), **given})


def test_a_model_of_your_own_takes_the_settings_that_are_given_or_refuses_them():
    with pytest.raises(
        ConfigError, match=r"argument 'width'\); expected .* takes rngs, width, num"
    ):
        train(dataclasses.replace(CONFIG, width=4), model=Linear, data=source())
    widths = []

    def sized(rngs, num_classes, in_channels, width):
        widths.append(width)
        return Linear(rngs, num_classes, in_channels)

    train(dataclasses.replace(CONFIG, width=4), model=sized, data=source())
    assert {*widths} == {4}


class Watching(Linear):
    """Keeps a look at what it computes; `grows` with each call."""

    grows = False

    def __call__(self, images):
        logits = super().__call__(images)
        self.logits = nnx.Intermediate(logits)  # as `sow` does
        if self.grows:
            self.seen = nnx.Variable(logits)
        return logits


def test_what_a_model_lets_one_see_is_dropped_and_one_that_makes_variables_is_refused(monkeypatch):
    watched, plain = (train(CONFIG, model=model, data=source()) for model in (Watching, Linear))
    assert_close(watched.params, plain.params, rtol=0)
    monkeypatch.setattr(Watching, "grows", True)
    with pytest.raises(ConfigError, match=r"Watching'> cannot be used \(its call makes variables"):
        train(CONFIG, model=Watching, data=source())


def test_an_average_has_the_dtype_of_the_weights(tmp_path):
    def half(rngs, num_classes, in_channels):
        model = Linear(rngs, num_classes, in_channels)
        nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model)))
        return model

    config = dataclasses.replace(CONFIG, ema_decay=0.5)
    found = train(config, model=half, data=source(), run_dir=tmp_path)
    assert {x.dtype.name for x in jax.tree.leaves(found.params)} == {"bfloat16"}
