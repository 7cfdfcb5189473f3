import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import Pairs, load_pretrained
from edl_jax.data import Augmentation
from edl_jax.errors import ConfigError
from edl_jax.objective import MARGINS, SEVERITIES, rank_metrics
from edl_jax.pairs import REGIMES, Mixture, log_probabilities
from edl_jax.runs.devices import device_mesh
from edl_jax.studies import CoverageConfig, coverage
from edl_jax.studies.coverage import compare_outputs, draw_references, rank_outputs, record
from edl_jax.training.learner import AXIS, Learner
from edl_jax.training.trainer import Trainer
from tests.test_training import CROSS_ENTROPY, DIGITS, load_shared, order_of

TINY = dataclasses.replace(
    DIGITS,
    loss="cross_entropy",
    epochs=2,
    data=dataclasses.replace(DIGITS.data, train_examples=256),
)
SMALL = CoverageConfig(
    losses=("cross_entropy",),
    epochs=(0, 2),
    num_seeds=2,
    num_outputs=128,
    num_synthetic=128,
    train=TINY,
)


@pytest.fixture(scope="module")
def dataset():
    return load_shared(TINY.data)


@pytest.fixture(scope="module")
def trainer(dataset):
    return Trainer(Learner(TINY, dataset, CROSS_ENTROPY, device_mesh(AXIS)))  # as in a recording


@pytest.fixture(scope="module")
def references():
    return draw_references(128, 10, Mixture())


def test_outputs_of_train_images_are_what_the_loss_sees(trainer, dataset):
    """The mean loss of the logits is the loss that the next steps find in the same images."""
    key_init, key = jax.random.split(jax.random.key(0))
    state = trainer.init(key_init)
    order = order_of(key, 0, len(dataset.train_labels))
    logits = trainer.outputs(state, key, "train", order[: 2 * TINY.batch_size])
    first = logits[: TINY.batch_size]
    assert logits.shape == (2 * TINY.batch_size, 10)
    assert logits.dtype == np.float32
    later = state._replace(step=state.step + 1)
    second = trainer.outputs(later, key, "train", order[TINY.batch_size : 2 * TINY.batch_size])
    np.testing.assert_array_equal(logits[TINY.batch_size :], second)
    stepped = trainer.take_steps(state, key, 1)
    losses = CROSS_ENTROPY(jnp.asarray(first), dataset.train_labels[order[: len(first)]])
    np.testing.assert_allclose(losses.mean(), stepped.loss_sum, rtol=1e-5)
    # Batch by batch: each with its own statistics and augmentation.
    again = trainer.outputs(stepped, key, "train", order[TINY.batch_size : 2 * TINY.batch_size])
    both = trainer.take_steps(stepped, key, 1)
    second = CROSS_ENTROPY(
        jnp.asarray(again), dataset.train_labels[order[TINY.batch_size : 2 * TINY.batch_size]]
    ).mean()
    np.testing.assert_allclose(both.loss_sum, losses.mean() + second, rtol=1e-5)


def test_outputs_of_test_images_are_those_of_the_accuracy(trainer, dataset):
    key_init, key = jax.random.split(jax.random.key(0))
    state = trainer.take_steps(trainer.init(key_init), key, 3)
    rows = np.arange(len(dataset.test_labels))  # no whole number of batches
    predicted = trainer.outputs(state, key, "test", rows).argmax(axis=-1)
    accuracy = trainer.evaluate(state, "test")["accuracy"]
    assert (predicted == dataset.test_labels).mean() == accuracy
    some = trainer.outputs(state, key, "test", rows[[7, 3]])
    np.testing.assert_array_equal(some.argmax(axis=-1), predicted[[7, 3]])


def test_a_recording_has_the_same_images_at_every_epoch(trainer, dataset):
    seen = functools.partial(record, TINY, epochs=(0, 2), num_outputs=200)
    found = seen()
    assert list(found) == [0, 2]
    first, last = found[0]["train"], found[2]["train"]
    assert first.probabilities.shape == (192, 10)  # whole batches of 64
    np.testing.assert_allclose(first.probabilities.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(first.labels, last.labels)
    assert not np.array_equal(first.probabilities, last.probabilities)
    assert found[0]["test"].probabilities.shape == (200, 10)
    # Two epochs later it is the classifier of two epochs' steps.
    key_init, key = jax.random.split(jax.random.key(TINY.seed))
    state = trainer.init(key_init)
    for _ in range(2):
        state = trainer.take_steps(state, key, trainer.period)
    rows = np.random.default_rng(0).permutation(len(dataset.test_labels))[:200]
    logits = trainer.outputs(state, key, "test", rows)
    np.testing.assert_allclose(found[2]["test"].probabilities, jax.nn.softmax(logits), atol=1e-5)
    other = record(dataclasses.replace(TINY, seed=1), epochs=(0,), num_outputs=200)
    np.testing.assert_array_equal(other[0]["train"].labels, first.labels)
    assert not np.array_equal(other[0]["train"].probabilities, first.probabilities)


def test_references_are_equally_many_pairs_and_the_control_is_near(references):
    references, fresh = references
    assert list(references) == ["mixture", *REGIMES]
    for index, (name, pairs) in enumerate(references.items()):
        assert len(pairs.labels) == 128
        if name != "mixture":
            assert (pairs.regimes == index - 1).all()
    near, *others = compare_outputs(fresh, references, load_pretrained())
    assert [row["reference"] for row in (near, *others)] == list(references)
    assert near["coverage"] > 0.9
    sure = references["confident_wrong"]
    far = compare_outputs(sure, references, load_pretrained())[0]
    assert far["mmd"] > 4 * abs(near["mmd"])
    assert far["correct"] == 0


def test_ranking_is_that_of_held_out_pairs(references):
    loss, pairs = load_pretrained(), references[0]["mixture"]
    found = rank_outputs(pairs, loss)
    log_p = log_probabilities(pairs.probabilities)
    expected = rank_metrics(
        loss(log_p, pairs.labels) / loss.scale,  # the network's own scale, as when evolved
        SEVERITIES["surprisal"](log_p, pairs.labels),
        pairs.regimes,
        margin=MARGINS["proportional"],
    )
    for name in ("pairwise_accuracy", "violated_margins"):
        assert found[name] == pytest.approx(expected[name], abs=2e-3), name
    worse = rank_outputs(pairs, loss.replace(params=jax.tree.map(jnp.negative, loss.params)))
    assert worse["pairwise_accuracy"] < 0.9
    broken = rank_outputs(
        pairs, loss.replace(params=jax.tree.map(lambda x: x + jnp.nan, loss.params))
    )
    assert {*broken} == {*found}
    assert np.isnan([*broken.values()]).all()
    unknown = Pairs(pairs.probabilities, pairs.labels, np.full_like(pairs.regimes, -1))
    assert rank_outputs(unknown, loss) == pytest.approx(found)


def test_study_writes_its_page_and_trains_nothing_twice(tmp_path, monkeypatch):
    module, built = sys.modules[coverage.__module__], []  # its name is the function's
    make = lambda *parts: built.append(parts) or Trainer(*parts)  # noqa: E731
    monkeypatch.setattr(module, "Trainer", make)
    study = coverage(SMALL, run_dir=tmp_path, executor="1")
    assert len(built) == 1  # both seeds share what is compiled
    rows = study.table.to_dict("records")
    assert [(row["part"], row["epoch"], row["n"]) for row in rows] == [
        ("", "", 1),
        *[(part, epoch, 2) for epoch in (0, 2) for part in ("train", "test")],
    ]
    assert rows[0]["loss"] == "fresh synthetic pairs"
    assert all(row["nearest regime"] in REGIMES for row in rows)
    assert len(study.cells[0]["outputs"]) == 2 * 2 * (1 + len(REGIMES))
    for name in ("coverage", "mmd"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "README.md").read_text()
    assert "num_outputs=128" in page
    assert "train.data.name='digits'" in page
    monkeypatch.setattr(module, "record", None)  # would fail
    assert coverage(SMALL, run_dir=tmp_path, executor="1").table.equals(study.table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ()}, "losses is"),
        ({"losses": ("edl", "edl")}, "all different"),
        ({"epochs": ()}, "epochs is"),
        ({"epochs": (2, 1)}, "increasing"),
        ({"epochs": (0, 3)}, "none later than the last"),
        ({"num_outputs": 3}, "num_outputs is 3"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        (
            {"train": dataclasses.replace(TINY, augmentation=Augmentation(mixup=0.2))},
            "has mixup or cutmix",
        ),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("part", ["severity", "margin"])
@pytest.mark.parametrize("value", ["my_own", None, ["surprisal"]], ids=str)
def test_a_loss_evolved_by_an_unknown_part_is_refused_before_anything_is_trained(
    part, value, tmp_path
):
    loss, path = load_pretrained(), str(tmp_path / "mine.safetensors")
    config = loss.provenance.config | {part: value}
    loss.replace(provenance=dataclasses.replace(loss.provenance, config=config)).save(path)
    message = rf"the {part} of .*mine.safetensors \(register your own, .*; expected one of "
    with pytest.raises(ConfigError, match=message):
        coverage(dataclasses.replace(SMALL, evolved=path), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cross_entropy", "gce(q=0.5)"])
def test_a_formula_has_no_ranking_to_measure(name, tmp_path):
    with pytest.raises(ConfigError, match=r"no pretrained loss .*; expected one of edl, .*file"):
        coverage(dataclasses.replace(SMALL, evolved=name), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
