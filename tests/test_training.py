import copy
import dataclasses
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from edl_jax import TrainConfig, load_pretrained, train
from edl_jax.data import Augmentation
from edl_jax.data.augmentation import normalize
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError, EDLError, LossFileError
from edl_jax.losses import LOSSES, formula
from edl_jax.losses.by_name import resolve_loss
from edl_jax.models import MODELS
from edl_jax.models.resnet import ResNet
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import read_json
from edl_jax.studies import CompareConfig
from edl_jax.studies.sweep import with_fields
from edl_jax.training import learner, make_trainer, trainer as programs, training
from edl_jax.training.learner import AXIS, Learner
from edl_jax.training.metrics import MEASURES
from edl_jax.training.trainer import Trainer
from edl_jax.training.training import load_shared, run_training
from tests.test_training_metrics import reference

# A convolution and no block: compiling takes most of these tests' time. One block learns something.
MODELS["tiny"] = partial(ResNet, (0,), width=8)
MODELS["small"] = partial(ResNet, (1,), width=8)
DIGITS = TrainConfig(
    model="tiny", epochs=3, batch_size=64, learning_rate=0.1, data=DataConfig(name="digits")
)
CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
PLAIN = Augmentation(crop=False, flip=False)
STEPS = 1437 // 64  # of an epoch


@pytest.fixture(scope="module")
def dataset():
    return load_shared(DIGITS.data)


def trainer_of(config, dataset, loss=CROSS_ENTROPY):
    return Trainer(Learner(config, dataset, loss, device_mesh(AXIS, jax.devices()[:1])))


@pytest.fixture(scope="module")
def trainer(dataset):
    return trainer_of(DIGITS, dataset)


def order_of(key, epoch, num_train=1437):
    return np.asarray(
        jax.random.permutation(jax.random.fold_in(jax.random.split(key)[0], epoch), num_train)
    )


def assert_close(found, expected, **tolerance):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, **tolerance)


def test_learns_digits_with_either_loss():
    for loss in ("cross_entropy", "edl"):
        result = train(dataclasses.replace(DIGITS, model="small", loss=loss, epochs=10))
        assert result.test_accuracy > 0.85, loss
        losses = [row["train_loss"] for row in result.history]
        assert losses[-1] < 0.5 * losses[0]
        assert result.test_accuracy == result.history[-1]["accuracy"]  # the last epoch's
        assert result.test_nll == result.history[-1]["nll"]
        assert 0 < result.test_calibration_error < 0.5
        assert "handwritten digits" in result.source


def test_a_step_is_sgd_with_clipping_nesterov_momentum_weight_decay_and_the_schedule(dataset):
    """Against a plain loop with the same model, written without the package's step."""
    config = dataclasses.replace(
        DIGITS,
        epochs=1,
        warmup_epochs=0.5,
        augmentation=PLAIN,
        optimizer=dataclasses.replace(DIGITS.optimizer, weight_decay=0.05, clip_norm=1.0),
    )
    trainer = trainer_of(config, dataset)
    state = trainer.init(jax.random.key(0))
    model = MODELS["tiny"](in_channels=1, rngs=nnx.Rngs(jax.random.key(0)))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    velocity = jax.tree.map(jnp.zeros_like, params)
    key = jax.random.key(1)
    order = order_of(key, 0)
    rates = [trainer.learner.learning_rate(step) for step in range(STEPS)]
    # 11 steps of warm-up, of which none is lost on a rate of 0.
    np.testing.assert_allclose(rates[:11], 0.1 * np.arange(1, 12) / 11, rtol=1e-6)
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 0.005

    @jax.jit
    def plain_step(params, statistics, velocity, pixels, labels, rate):
        images = normalize(pixels, dataset.mean, dataset.std)

        def objective(params):
            model = nnx.merge(graphdef, params, statistics, copy=True)
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(model(images), labels)
            return losses.mean(), nnx.state(model, nnx.BatchStat)

        gradient, statistics_after = jax.grad(objective, has_aux=True)(params)
        norm = sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)) ** 0.5
        gradient = jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), gradient)
        gradient = jax.tree.map(lambda g, p: g + 0.05 * p, gradient, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v, g: p - rate * (g + 0.9 * v), params, velocity, gradient)
        return params, statistics_after, velocity

    for step, rate in enumerate(rates):
        batch = order[step * 64 : (step + 1) * 64]
        images, labels = dataset.train_images[batch], dataset.train_labels[batch]
        params, statistics, velocity = plain_step(
            params, statistics, velocity, images, labels, rate
        )
    state = trainer.take_steps(state, key, STEPS)
    assert_close(state.params["model"], params, rtol=2e-2, atol=2e-3)


def test_one_program_serves_every_epoch_and_seed(dataset):
    traces = []
    counted = lambda x, y: (traces.append(1), CROSS_ENTROPY(x, y))[1]  # noqa: E731
    trainer = trainer_of(DIGITS, dataset, counted)
    traces.clear()  # of what looked whether it is a loss
    for seed in range(2):
        state = trainer.init(jax.random.key(seed))
        for count in (3, STEPS - 3, 2):
            state = trainer.take_steps(state, jax.random.key(seed), count)
    assert len(traces) == 1


def test_same_seed_same_training_and_another_seed_another(trainer):
    trainer = copy.copy(trainer)
    trainer.total = STEPS  # one epoch is enough
    results = [run_training(trainer, seed) for seed in (1, 1, 2)]
    assert_close(results[0].params, results[1].params, rtol=0)
    assert results[0].history[-1]["train_loss"] != results[2].history[-1]["train_loss"]


def test_chunks_of_any_length_give_the_same_training(trainer):
    key = jax.random.key(0)
    whole = trainer.take_steps(trainer.init(key), key, STEPS)
    parts = trainer.init(key)
    for count in (1, 7, STEPS - 8):
        parts = trainer.take_steps(parts, key, count)
    assert_close(whole, parts, rtol=0)
    assert int(parts.step) == STEPS


def test_losses_meet_the_same_images_in_the_same_order_and_each_once(dataset):
    """Only the loss differs; and every epoch is a new order of all images but its surplus."""
    seen = {}
    for name in ("cross_entropy", "edl"):
        loss = resolve_loss(name)

        def recording(logits, labels, name=name, loss=loss):
            jax.debug.callback(lambda y: seen.setdefault(name, []).append(y), labels, ordered=True)
            return loss(logits, labels)

        trainer = trainer_of(dataclasses.replace(DIGITS, epochs=2), dataset, recording)
        state = trainer.init(jax.random.key(3))
        for _ in range(2):
            state = trainer.take_steps(state, jax.random.key(4), STEPS)
        jax.block_until_ready(state)
    np.testing.assert_array_equal(seen["cross_entropy"], seen["edl"])
    labels = np.concatenate(seen["edl"]).reshape(2, -1)
    for epoch in range(2):
        expected = dataset.train_labels[order_of(jax.random.key(4), epoch)[: 64 * STEPS]]
        np.testing.assert_array_equal(labels[epoch], expected)


def test_metrics_count_every_image_once(dataset, trainer, monkeypatch):
    monkeypatch.setattr(programs, "_EVAL_BATCH", 100)  # the last batch is not whole
    programs._kept_batches.cache_clear()
    state = trainer.init(jax.random.key(0))
    state = trainer.take_steps(state, jax.random.key(0), STEPS)
    model = MODELS["tiny"](in_channels=1, rngs=nnx.Rngs(0))
    nnx.update(model, state.params["model"], state.statistics)
    model.eval()
    logits = nnx.jit(lambda model, x: model(normalize(x, dataset.mean, dataset.std)))(
        model, dataset.test_images
    )
    accuracy, nll, calibration_error = reference(logits, dataset.test_labels)
    assert 0.1 < accuracy < 1
    found = trainer.evaluate(state, "test")
    assert found["accuracy"] == pytest.approx(accuracy, abs=2 / 360)
    assert found["nll"] == pytest.approx(nll, rel=1e-3)
    assert found["calibration_error"] == pytest.approx(calibration_error, abs=4 / 360)
    programs._kept_batches.cache_clear()


def test_validation_images_are_watched_and_test_images_reported():
    config = dataclasses.replace(
        DIGITS,
        epochs=2,
        data=dataclasses.replace(DIGITS.data, val_examples=200, train_examples=500),
    )
    result = train(config)
    assert {row["evaluated_on"] for row in result.history} == {"val"}
    data = load_shared(config.data)
    assert len(data.val_labels) == 200
    assert result.test_accuracy * len(data.test_labels) == pytest.approx(
        round(result.test_accuracy * len(data.test_labels))
    )


def test_without_test_nothing_looks_at_the_test_images(trainer):
    def evaluate(state, split):
        assert split == "val"
        return dict(zip(MEASURES, (0.5, 1.0, 0.1), strict=True))

    config = dataclasses.replace(
        DIGITS, epochs=1, data=dataclasses.replace(DIGITS.data, val_examples=1)
    )
    blind = copy.copy(trainer)
    blind.config, blind.total, blind.evaluate = config, STEPS, evaluate
    result = run_training(blind, 0, test=False)
    assert np.isnan([result.test_accuracy, result.test_nll, result.test_calibration_error]).all()
    assert result.history[0]["calibration_error"] == 0.1
    with pytest.raises(AssertionError):
        run_training(blind, 0)


def test_a_trainer_trains_each_seed_and_reports_every_epoch():
    config = dataclasses.replace(
        DIGITS, epochs=1, data=dataclasses.replace(DIGITS.data, train_examples=128, stream=True)
    )
    rows = []
    results = make_trainer(config)([0, 1], report=rows.append)
    assert results[0].history != results[1].history
    assert rows == [*results[0].history, *results[1].history]


def test_run_folder_and_a_loss_given_as_an_object(tmp_path):
    config = dataclasses.replace(DIGITS, epochs=2)
    result = train(config, loss=load_pretrained(), run_dir=tmp_path)
    assert read_json(tmp_path / "config.json")["train"]["epochs"] == 2
    found = read_json(tmp_path / "results.json")
    for name in ("test_accuracy", "test_nll", "test_calibration_error"):
        assert found[name] == getattr(result, name)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert train(config).test_accuracy == result.test_accuracy


def test_losses_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    load_pretrained().save(path)

    @jax.jit
    def losses(logits, labels):
        names = (str(path), "edl", "cross_entropy")
        return [resolve_loss(name)(logits, labels) for name in names]

    mine, edl, cross_entropy = losses(np.float32([[1, 2]]), np.int32([0]))
    np.testing.assert_array_equal(mine, edl)
    np.testing.assert_allclose(cross_entropy, 1.3132617, rtol=1e-6)
    with pytest.raises(LossFileError, match="there is no loss file"):
        resolve_loss("none.safetensors")


@pytest.mark.parametrize(("head_scale", "scale"), [(None, 1.0), (20.0, 20.0)])
def test_a_margin_loss_is_told_the_scale_of_the_head_and_the_class_counts(head_scale, scale):
    config = dataclasses.replace(
        DIGITS,
        loss="ldam",
        head_scale=head_scale,
        data=dataclasses.replace(DIGITS.data, imbalance="step"),
    )
    dataset = load_shared(config.data)
    counts = tuple(dataset.class_counts.tolist())
    expected = partial(LOSSES["ldam"], scale=scale, class_counts=counts)
    both = jax.jit(lambda *x: (training.resolve_config_loss(config, dataset)(*x), expected(*x)))
    np.testing.assert_allclose(*both(np.float32([[0.3, *[0.1] * 9]]) * scale, np.int32([0])))


def test_a_margin_loss_of_your_own_says_what_its_scale_is_of(dataset):
    with mock.patch.dict(LOSSES):

        @partial(formula, scale_of="cosines")
        def of_cosines(c, *, class_counts, scale=5.0):
            return scale * len(class_counts) + 0 * c.log_p()

        @partial(formula, scale_of="logits")
        def of_logits(c, *, scale=5.0):
            return scale + 0 * c.log_p()

        @formula
        def of_nothing(c, *, scale=5.0):
            return scale + 0 * c.log_p()

        with pytest.raises(ConfigError, match=r"'of_cosines', whose .* expected a head_scale"):
            dataclasses.replace(DIGITS, loss="of_cosines")
        scales = {"of_cosines": (20.0,), "of_logits": (20.0, None), "of_nothing": (20.0, None)}
        configs = [
            dataclasses.replace(DIGITS, loss=loss, head_scale=scale)
            for loss, every in scales.items()
            for scale in every
        ]
        losses = [training.resolve_config_loss(config, dataset) for config in configs]
        values = [float(loss(np.zeros((1, 10)), np.int32([0]))[0]) for loss in losses]
        assert values == [200.0, 20.0, 1.0, 5.0, 5.0]
        names = CompareConfig(losses=("static",)).loss_names()
        assert "of_nothing" in names
        assert not {"of_cosines", "of_logits"} & {*names}


def test_divergence_names_the_step_and_the_learning_rate(dataset):
    config = dataclasses.replace(DIGITS, learning_rate=2e30, warmup_epochs=0, seed=3)
    with pytest.raises(
        EDLError, match=r"not finite at step [123] \(epoch 1, seed 3\).* rate of [12][.\d]*e\+30"
    ):
        train(config)
    with pytest.raises(EDLError, match=r"at step 0 .*No checkpoint was kept"):
        train(DIGITS, loss=lambda logits, labels: jnp.nan * logits[:, 0])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_steps_and_the_evaluation_lower_for_accelerators(platform, dataset, monkeypatch):
    # There the steps are a loop on the device, in bfloat16.
    monkeypatch.setattr(learner, "on_cpu", lambda mesh: False)
    augmentation = Augmentation(cutmix=1.0, cutout=2)
    config = dataclasses.replace(DIGITS, ema_decay=0.9, augmentation=augmentation)
    trainer = trainer_of(config, dataset, resolve_loss("edl"))
    key = jax.random.key(0)
    state = trainer.init(key)
    exported = jax.export.export(
        jax.jit(lambda state: trainer.take_steps(state, key, 3)), platforms=[platform]
    )(state)
    assert exported.platforms == (platform,)
    assert "bf16" in exported.mlir_module()
    float32 = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.statistics))}
    assert float32 == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"data.noise_rate": 0.2}, "noise_rate is 0.2 without noise"),
        ({"data.imbalance": "linear"}, "imbalance is 'linear'"),
        ({"data.name": ""}, "name is ''; expected a string, not empty"),
        ({"epochs": 1.5}, r"epochs is 1\.5; expected a whole number"),
        ({"model": "resnet9"}, "model is 'resnet9'"),
        ({"data.train_examples": 0}, "train_examples is 0"),
        ({"data.val_examples": -1}, "val_examples is -1"),
        ({"width": 0}, "width is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"data.noise_seed": -1}, r"DataConfig\.noise_seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"warmup_epochs": 7.0}, r"warmup_epochs is 7\.0 with 6 epochs; expected at most as many"),
        ({"optimizer.weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0; .* less than 1"),
        ({"optimizer.clip_norm": 0.0}, r"clip_norm is 0\.0"),
        ({"head_scale": -1.0}, r"head_scale is -1\.0"),
        ({"precision": "float64"}, "precision is 'float64'; expected one of auto, float32"),
        ({"optimizer.name": "sdg"}, "name is 'sdg' with .* expected an optimizer of optax"),
        ({"optimizer.name": "tree"}, "name is 'tree'"),
        ({"optimizer.name": "lbfgs"}, "'lbfgs' with .* cannot be used .* gradients and parameters"),
        (
            {"optimizer.options": {"beta": 1.0}},
            "with options {'beta': 1.0}, .*unexpected keyword argument 'beta'",
        ),
        (
            {"optimizer.name": "adamw", "optimizer.options": {"weight_decay": 0.1}},
            "multiple values for keyword argument 'weight_decay'",
        ),
        ({"seed": -1}, "seed is -1"),
        ({"data.split_seed": -1}, "split_seed is -1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        with_fields(TrainConfig(), change)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ConfigError, match=r"batch_size is 128 with 50 training images .* at most"):
        train(TrainConfig(data=DataConfig(name="digits", train_examples=50)))
