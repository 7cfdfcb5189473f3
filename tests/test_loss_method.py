"""Losses given as objects: what is refused, and what those that change while they are used keep."""

import dataclasses
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from edl_jax import LossMethod, train
from edl_jax.data import Augmentation
from edl_jax.errors import ConfigError, InputError
from edl_jax.losses import LOSSES, formula, load_pretrained
from edl_jax.losses.method import check_loss
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.describing import describe
from edl_jax.training import make_trainer, training
from edl_jax.training.training import load_shared
from tests.baseline_losses import Tempered
from tests.test_training import DIGITS, PLAIN, assert_close

SMALL = dataclasses.replace(
    DIGITS,
    batch_size=32,
    epochs=2,
    augmentation=PLAIN,
    data=dataclasses.replace(DIGITS.data, train_examples=64, test_examples=50),
)


class Counter(nnx.Module):
    """The number of calls so far is the loss of every example."""

    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, logits, labels):
        losses = self.calls[...] + 0 * logits[..., 0]
        self.calls[...] += 1
        return losses


class Watched(nnx.Module):
    """A cross-entropy that counts its calls, follows its mean and is scaled by a random stream."""

    inner = staticmethod(optax.losses.softmax_cross_entropy_with_integer_labels)

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.mean = nnx.BatchStat(jnp.zeros(()))
        self.rngs = nnx.Rngs(noise=7)

    def __call__(self, logits, labels):
        factor = 1 + 0.1 * jax.random.uniform(self.rngs.noise(), dtype=jnp.float32)
        losses = factor * self.inner(self.scale[...] * logits, labels)
        self.calls[...] += 1
        self.mean[...] = 0.5 * (self.mean[...] + losses.mean())
        return losses


def test_a_loss_keeps_its_state_from_step_to_step():
    loss = Counter()
    results = make_trainer(SMALL, loss=loss)([0, 5])
    for result in results:
        # Steps 0 and 1 in the first epoch, 2 and 3 in the second.
        assert [row["train_loss"] for row in result.history] == [0.5, 2.5]
        assert int(result.loss_state["calls"][...]) == 4  # and an evaluation after each epoch
    assert int(loss.calls[...]) == 0  # given, and left as it was


@pytest.mark.parametrize("kind", ["module", "method"])
def test_a_training_that_was_stopped_resumes_with_the_state_of_its_loss(
    kind, tmp_path, monkeypatch
):
    config, loss = (SMALL, Watched()) if kind == "module" else (VALIDATED, Following(6))
    whole = train(config, loss=loss, run_dir=tmp_path / "whole")
    save = Checkpoints.save

    def once(self, *args, **options):
        save(self, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", once)
    with pytest.raises(KeyboardInterrupt):
        train(config, loss=loss, run_dir=tmp_path / "parts")
    monkeypatch.undo()
    parts = train(config, loss=loss, run_dir=tmp_path / "parts")
    both = [(x.params, x.loss_params, x.loss_state) for x in (whole, parts)]
    assert_close(*both, rtol=0)
    if kind == "module":
        assert int(parts.loss_state["calls"][...]) == 4
        assert int(parts.loss_state["rngs"]["noise"]["count"][...]) == 4
        assert float(parts.loss_state["mean"][...]) != 0


class Following(LossMethod):
    """Cross-entropy at a temperature that follows the validation accuracy; keeps what it saw."""

    def __init__(self, steps):
        self.steps = steps

    def init(self, key, num_classes):
        nothing = jnp.full(self.steps, jnp.nan)
        seen = {"temperature": nothing, "accuracy": nothing, "progress": nothing}
        return {
            "temperature": jnp.ones(()),
            "bias": nnx.Param(jnp.zeros(num_classes)),
            "key": key,
            "seen": seen,
        }

    def losses(self, state, logits, labels):
        return LOSSES["cross_entropy"](logits / state["temperature"] + state["bias"], labels)

    def update(self, state, student):
        logits, labels = student.validation()
        now = {
            "temperature": state["temperature"],
            "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels),
            "progress": student.progress,
        }
        return {
            "temperature": 0.9 * state["temperature"] + 0.1 * (1 + now["accuracy"]),
            "bias": state["bias"],
            "key": jax.random.split(state["key"])[0],
            "seen": jax.tree.map(lambda x, y: x.at[student.step - 1].set(y), state["seen"], now),
        }


VALIDATED = dataclasses.replace(
    SMALL, epochs=3, data=dataclasses.replace(SMALL.data, val_examples=32)
)


def test_a_temperature_follows_the_validation_accuracy(monkeypatch):
    result = train(VALIDATED, loss=Following(6))
    seen = {name: np.asarray(x, np.float64) for name, x in result.loss_state["seen"].items()}
    expected = [1.0]
    for accuracy in seen["accuracy"]:
        expected.append(0.9 * expected[-1] + 0.1 * (1 + accuracy))
    np.testing.assert_allclose(seen["temperature"], expected[:-1], rtol=1e-6)
    np.testing.assert_allclose(result.loss_state["temperature"], expected[-1], rtol=1e-6)
    np.testing.assert_allclose(seen["progress"], np.arange(1, 7) / 6, rtol=1e-6)
    # All 32 images make a batch: after each epoch it saw what the evaluation saw.
    measured = [row["accuracy"] for row in result.history]
    np.testing.assert_allclose(seen["accuracy"][1::2], measured, rtol=1e-6)
    assert len({*measured}) > 1
    # Trained by the classifier's optimizer; the gradient of a softmax sums to 0.
    bias = np.asarray(result.loss_params["bias"][...])
    assert np.abs(bias).max() > 1e-4
    assert abs(bias.sum()) < 1e-5


def test_validation_batches_take_all_images_in_turn():
    class Watching(LossMethod):
        def init(self, key, num_classes):
            return jnp.zeros((4, num_classes), jnp.int32)

        def losses(self, state, logits, labels):
            return LOSSES["cross_entropy"](logits, labels)

        def update(self, state, student):
            counts = jnp.bincount(student.validation()[1], length=10)
            return state.at[student.step - 1].set(counts)

    config = dataclasses.replace(
        VALIDATED, epochs=2, data=dataclasses.replace(VALIDATED.data, val_examples=48)
    )
    found = train(config, loss=Watching()).loss_state
    in_turn = np.resize(load_shared(config.data).val_labels, (4, 32))
    np.testing.assert_array_equal(found, [np.bincount(x, minlength=10) for x in in_turn])


def test_a_method_sees_the_whole_share_of_a_batch_in_order():
    class Recording(LossMethod):
        def init(self, key, num_classes):
            return jnp.zeros((), jnp.int32), jnp.zeros(())

        def losses(self, state, logits, labels):
            return LOSSES["cross_entropy"](logits, labels)

        def update(self, state, student):
            logits, labels = student.logits, student.labels
            places = jnp.arange(len(labels))
            return jnp.sum(places * labels), LOSSES["cross_entropy"](logits, labels).mean()

    config = dataclasses.replace(
        SMALL, epochs=1, data=dataclasses.replace(SMALL.data, train_examples=32)
    )
    share = jax.devices()[:1]  # whose share is the batch
    result = train(config, loss=Recording(), devices=share)
    key = jax.random.split(jax.random.split(jax.random.key(0))[1])[0]
    order = jax.random.permutation(jax.random.fold_in(key, 0), 32)
    labels = load_shared(config.data).train_labels[order]
    assert int(result.loss_state[0]) == np.sum(np.arange(32) * labels)
    assert float(result.loss_state[1]) == pytest.approx(result.history[0]["train_loss"])


@pytest.mark.parametrize("changes", [{}, {"val_examples": 32, "stream": True}])
def test_a_loss_that_looks_at_validation_images_needs_them_in_memory(changes):
    data = dataclasses.replace(SMALL.data, **changes)
    config = dataclasses.replace(SMALL, data=data)
    with pytest.raises(ConfigError, match=r"Following looks at validation images.* val_ex"):
        make_trainer(config, loss=Following(4))


HARD, SOFT = False, True


class Growing(Counter):
    def __call__(self, logits, labels):
        self.calls = nnx.Variable(jnp.zeros(3))
        return logits[..., 0]


@pytest.mark.parametrize(
    ("loss", "soft", "named"),
    [
        (3, HARD, r"the loss 3 cannot be called with logits .* and labels "),
        ([LOSSES["gce"]], HARD, r"the loss \[<function gce.* cannot be called with"),
        ([0] * 9999, HARD, r"the loss \[0, 0, "),
        (np.ones(3), HARD, r"the loss array\(\[1., 1., 1.\]\)"),
        (lambda z, y: None, HARD, r"<lambda> gives None for logits float32\[11, 10\] and labels "),
        (lambda z, y: y, HARD, r"gives int32\[11\] for .* int32\[11\]; expected float32\[11\]"),
        (lambda z, y: z, HARD, r"gives float32\[11, 10\]"),
        (lambda z, y: z.sum(axis=0), HARD, r"gives float32\[10\]"),
        (lambda z, y: z.mean(), HARD, r"gives float32\[\]"),
        (lambda z, y: (z[:, 0], z), HARD, r"gives \('float32\[11\]', 'float32\[11, 10\]'\)"),
        (lambda z, y: z[:, 0] > 0, HARD, r"gives bool\[11\]"),
        (lambda z: z, HARD, r"cannot be called with .* \(TypeError: .*2 were given\)"),
        (lambda z, y: z.nothing, HARD, r"cannot be called .* \(AttributeError: "),
        (lambda z, y: z[:, 0] if z[0, 0] > 0 else y, HARD, r"\(TracerBoolConversionError: "),
        (optax.losses.softmax_cross_entropy, HARD, r"softmax_cross_entropy cannot be called"),
        (Watched.inner, SOFT, r"integer_labels cannot .* labels float32\[11, 10\]"),
        (Tempered, HARD, r"Tempered cannot be called"),
        (Growing(), HARD, r"leaves a state of .*float32\[3\].*instead of.*int32\[\]"),
    ],
)
def test_what_is_no_loss_is_refused(loss, soft, named):
    with pytest.raises(ConfigError, match=named) as told:
        check_loss(loss, 10, soft=soft)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("soft", [HARD, SOFT])
def test_what_is_a_loss_is_taken_and_left_as_it_was(soft):
    counter = Counter()
    own = (load_pretrained(), LOSSES["gce"], Tempered(), jax.jit(LOSSES["mae"]))
    for loss in (*own, counter):
        check_loss(loss, 10, soft=soft)
    assert int(counter.calls[...]) == 0
    with pytest.raises(InputError, match=r"7 classes; .* made for 10"):
        check_loss(load_pretrained("edl-paper"), 7, soft=soft)


@pytest.mark.parametrize("start", [train, make_trainer])
@pytest.mark.parametrize(
    ("loss", "named"),
    [(lambda z, y: None, "gives None"), ("no_loss", "loss is 'no_loss'"), (3, "the loss 3 cann")],
)
def test_a_loss_is_refused_before_anything_is_trained(start, loss, named):
    with pytest.raises(ConfigError, match=named):
        start(SMALL, loss=loss)


def test_a_loss_of_whole_labels_is_refused_where_labels_are_mixed():
    with pytest.raises(ConfigError, match=r"cannot be called .* labels float32\[11, 10\]"):
        train(dataclasses.replace(SMALL, augmentation=Augmentation(mixup=1.0)), loss=Watched())


def of_cosines(c, *, scale=1.0):
    return scale * c.miss()


def test_a_loss_may_be_given_by_name_or_path(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(training, "Trainer", made.append)
    monkeypatch.setattr(training, "run_training", lambda *_, **__: None)
    train(SMALL, loss="gce(q=0.5)")
    train(dataclasses.replace(SMALL, loss="gce(q=0.5)"))
    named = [(learner.config.loss, learner.identity()["loss"]) for learner in made]
    assert named == [("gce(q=0.5)", "gce(q=0.5)")] * 2
    path = tmp_path / "mine.safetensors"
    load_pretrained().save(path)
    train(SMALL, loss=path)
    loss = made[2].identity()["loss"]
    assert (made[2].config.loss, loss) == (str(path), describe(load_pretrained()))
    with mock.patch.dict(LOSSES):
        partial(formula, scale_of="cosines")(of_cosines)
        with pytest.raises(ConfigError, match="expected a head_scale"):
            train(SMALL, loss="of_cosines")
