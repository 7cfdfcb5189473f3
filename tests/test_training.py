import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from edl_jax import TrainConfig, load_pretrained, train
from edl_jax.errors import ConfigError, EDLError, LossFileError
from edl_jax.runs import read_json
from edl_jax.training import steps
from edl_jax.training.augmentation import normalize
from edl_jax.training.loop import load_config_dataset, run_training
from edl_jax.training.losses import resolve_loss
from edl_jax.training.resnet import create_model
from edl_jax.training.steps import make_train

DIGITS = TrainConfig(dataset="digits", width=4, epochs=3, batch_size=64, learning_rate=0.1)
CROSS_ENTROPY = resolve_loss("cross_entropy")


@pytest.fixture(scope="module")
def dataset():
    return load_config_dataset(DIGITS)


def test_learns_digits_with_either_loss():
    for loss in ("cross_entropy", "edl"):
        result = train(dataclasses.replace(DIGITS, loss=loss, epochs=5))
        assert result.test_accuracy > 0.85, loss
        losses = [row["train_loss"] for row in result.history]
        assert losses[-1] < 0.5 * losses[0]
        assert result.test_accuracy == result.history[-1]["accuracy"]  # the last epoch's
        assert "handwritten digits" in result.source


def test_a_step_is_sgd_with_nesterov_momentum_weight_decay_and_the_schedule(dataset):
    """Against a plain loop with the same model, written without the package's step."""
    config = dataclasses.replace(DIGITS, epochs=1, warmup_epochs=0.5, augment=False)
    functions = make_train(config, dataset, CROSS_ENTROPY)
    state = functions.init(jax.random.key(0))
    model = create_model("resnet8", width=4, in_channels=1, rngs=nnx.Rngs(jax.random.key(0)))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    velocity = jax.tree.map(jnp.zeros_like, params)
    key = jax.random.key(1)
    order = jax.random.permutation(jax.random.fold_in(key, 0), len(dataset.train_labels))
    steps = len(dataset.train_labels) // 64
    rates = [functions.learning_rate(step) for step in range(steps)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 0.005

    @jax.jit
    def plain_step(params, statistics, velocity, images, labels, rate):
        def objective(params):
            model = nnx.merge(graphdef, params, statistics, copy=True)
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(model(images), labels)
            return losses.mean(), nnx.state(model, nnx.BatchStat)

        gradient, statistics_after = jax.grad(objective, has_aux=True)(params)
        gradient = jax.tree.map(lambda g, p: g + 5e-4 * p, gradient, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v, g: p - rate * (g + 0.9 * v), params, velocity, gradient)
        return params, statistics_after, velocity

    for step, rate in enumerate(rates):
        batch = np.asarray(order[step * 64 : (step + 1) * 64])
        images = normalize(jnp.asarray(dataset.train_images[batch]), dataset.mean, dataset.std)
        params, statistics, velocity = plain_step(
            params, statistics, velocity, images, dataset.train_labels[batch], rate
        )
    state = functions.epoch(state, key)
    for mine, plain in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=2e-2, atol=2e-3)


def test_one_program_serves_every_epoch_and_seed(dataset):
    functions = make_train(DIGITS, dataset, CROSS_ENTROPY)
    traces = []
    counted = lambda x, y: (traces.append(1), CROSS_ENTROPY(x, y))[1]  # noqa: E731
    functions = make_train(DIGITS, dataset, counted)
    for seed in range(2):
        state = functions.init(jax.random.key(seed))
        for _ in range(2):
            state = functions.epoch(state, jax.random.key(seed))
    assert len(traces) == 1


def test_same_seed_same_training_and_another_seed_another(dataset):
    functions = make_train(DIGITS, dataset, CROSS_ENTROPY)
    first, same, other = (run_training(DIGITS, dataset, functions, seed) for seed in (1, 1, 2))
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(same.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.history[-1]["train_loss"] != other.history[-1]["train_loss"]


def test_losses_meet_the_same_images_in_the_same_order(dataset):
    """Only the loss differs: with one network state, both see the same logits."""
    seen = {}
    for name in ("cross_entropy", "edl"):
        loss = resolve_loss(name)

        def recording(logits, labels, name=name, loss=loss):
            jax.debug.callback(lambda y: seen.setdefault(name, []).append(y), labels, ordered=True)
            return loss(logits, labels)

        functions = make_train(dataclasses.replace(DIGITS, epochs=1), dataset, recording)
        state = functions.epoch(functions.init(jax.random.key(3)), jax.random.key(4))
        jax.block_until_ready(state)
    np.testing.assert_array_equal(seen["cross_entropy"], seen["edl"])


def test_accuracy_counts_every_image_once(dataset, monkeypatch):
    monkeypatch.setattr(steps, "_EVAL_BATCH", 100)  # the last batch is not whole
    functions = make_train(DIGITS, dataset, CROSS_ENTROPY)
    state = functions.init(jax.random.key(0))
    state = functions.epoch(state, jax.random.key(0))
    model = create_model("resnet8", width=4, in_channels=1, rngs=nnx.Rngs(0))
    nnx.update(model, state.params, state.statistics)
    model.eval()
    logits = model(normalize(jnp.asarray(dataset.test_images), dataset.mean, dataset.std))
    expected = (np.asarray(logits).argmax(-1) == dataset.test_labels).mean()
    assert 0.1 < expected < 1
    assert functions.accuracy(state, "test") == pytest.approx(expected, abs=2 / 360)


def test_validation_images_are_watched_and_test_images_reported():
    config = dataclasses.replace(DIGITS, val_examples=200, train_examples=500)
    result = train(config)
    assert {row["evaluated_on"] for row in result.history} == {"val"}
    data = load_config_dataset(config)
    assert len(data.val_labels) == 200
    assert result.test_accuracy * len(data.test_labels) == pytest.approx(
        round(result.test_accuracy * len(data.test_labels))
    )


def test_run_folder_and_a_loss_given_as_an_object(tmp_path):
    result = train(DIGITS, loss=load_pretrained(), run_dir=tmp_path)
    assert read_json(tmp_path / "config.json")["train"]["epochs"] == 3
    assert read_json(tmp_path / "results.json")["test_accuracy"] == result.test_accuracy
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    named = train(DIGITS)
    assert named.test_accuracy == result.test_accuracy


def test_losses_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    load_pretrained().save(path)
    logits, labels = jnp.asarray([[1.0, 2.0]]), jnp.asarray([0])
    np.testing.assert_array_equal(
        resolve_loss(str(path))(logits, labels), resolve_loss("edl")(logits, labels)
    )
    np.testing.assert_allclose(resolve_loss("cross_entropy")(logits, labels), 1.3132617, rtol=1e-6)
    with pytest.raises(ConfigError, match="loss is 'hinge'; expected one of cross_entropy, edl"):
        resolve_loss("hinge")
    with pytest.raises(LossFileError, match="there is no loss file"):
        resolve_loss("none.safetensors")


def test_divergence_is_an_error_that_names_the_epoch(dataset):
    with pytest.raises(EDLError, match=r"diverged: the mean loss of epoch 1 is nan"):
        train(DIGITS, loss=lambda logits, labels: jnp.nan * logits[:, 0])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_epoch_and_the_evaluation_lower_for_accelerators(platform, dataset, monkeypatch):
    # There the epoch is one scan, in bfloat16.
    monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
    functions = make_train(DIGITS, dataset, resolve_loss("edl"))
    state = jax.eval_shape(functions.init, jax.random.key(0))
    exported = jax.export.export(jax.jit(functions.epoch), platforms=[platform])(
        state, jax.random.key(0)
    )
    assert exported.platforms == (platform,)
    assert "bf16" in exported.mlir_module()
    float32 = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.statistics))}
    assert float32 == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"epochs": 1.5}, r"epochs is 1\.5; expected a whole number"),
        ({"dataset": "mnist"}, "dataset is 'mnist'; expected one of auto, cifar10, digits"),
        ({"model": "resnet9"}, "model is 'resnet9'"),
        ({"train_examples": 0}, "train_examples is 0"),
        ({"val_examples": -1}, "val_examples is -1"),
        ({"width": 0}, "width is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"warmup_epochs": 7.0}, r"warmup_epochs is 7\.0; .* at least 0 and at most 6"),
        ({"momentum": 1.5}, r"momentum is 1\.5"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TrainConfig(), **change)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ConfigError, match="batch_size is 128 with 50 training images"):
        train(TrainConfig(dataset="digits", train_examples=50))
