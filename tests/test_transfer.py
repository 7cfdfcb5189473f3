import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import Pairs, load_pretrained
from edl_jax.errors import ConfigError, EDLError, Preempted, RunFolderError
from edl_jax.objective import MARGINS, SEVERITIES, rank_metrics
from edl_jax.pairs import REGIMES, Mixture
from edl_jax.pairs.sampler import log_probabilities
from edl_jax.studies import TransferConfig, transfer
from edl_jax.studies.results import StudyResults
from edl_jax.studies.transferability import recording
from edl_jax.studies.transferability.measures import compare_pairs, draw_references, make_ranking
from edl_jax.studies.transferability.recording import load_recording, record
from edl_jax.training import Augmentation
from tests.test_training import CROSS_ENTROPY, DIGITS, functions_of, load_config_dataset, order_of

TINY = dataclasses.replace(DIGITS, epochs=2, train_examples=256)
SMALL = TransferConfig(
    losses=("cross_entropy",),
    epochs=(0, 2),
    num_seeds=2,
    num_outputs=128,
    num_synthetic=128,
    train=TINY,
)


@pytest.fixture(scope="module")
def dataset():
    return load_config_dataset(TINY)


@pytest.fixture(scope="module")
def functions(dataset):
    return functions_of(TINY, dataset)


@pytest.fixture(scope="module")
def references():
    return draw_references(128, 10, Mixture())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer") / "run"
    return folder, transfer(SMALL, run_dir=folder)


def test_outputs_of_train_images_are_what_the_loss_sees(functions, dataset):
    """The mean loss of the logits is the loss that the next steps find in the same images."""
    key_init, key = jax.random.split(jax.random.key(0))
    state = functions.init(key_init)
    order = order_of(key, 0, len(dataset.train_labels))
    logits = functions.outputs(state, key, "train", order[: 2 * TINY.batch_size])
    first = logits[: TINY.batch_size]
    assert logits.shape == (2 * TINY.batch_size, 10)
    assert logits.dtype == np.float32
    later = state._replace(step=state.step + 1)
    second = functions.outputs(later, key, "train", order[TINY.batch_size : 2 * TINY.batch_size])
    np.testing.assert_array_equal(logits[TINY.batch_size :], second)
    stepped = functions.advance(state, key, 1)
    losses = CROSS_ENTROPY(jnp.asarray(first), dataset.train_labels[order[: len(first)]])
    np.testing.assert_allclose(losses.mean(), stepped.loss_sum, rtol=1e-5)
    # Batch by batch: each with its own statistics and augmentation.
    again = functions.outputs(stepped, key, "train", order[TINY.batch_size : 2 * TINY.batch_size])
    both = functions.advance(stepped, key, 1)
    second = CROSS_ENTROPY(
        jnp.asarray(again), dataset.train_labels[order[TINY.batch_size : 2 * TINY.batch_size]]
    ).mean()
    np.testing.assert_allclose(both.loss_sum, losses.mean() + second, rtol=1e-5)


def test_outputs_of_test_images_are_those_of_the_accuracy(functions, dataset):
    key_init, key = jax.random.split(jax.random.key(0))
    state = functions.advance(functions.init(key_init), key, 3)
    rows = np.arange(len(dataset.test_labels))  # no whole number of batches
    predicted = functions.outputs(state, key, "test", rows).argmax(axis=-1)
    (accuracy,) = functions.evaluate(state, "test").accuracy
    assert (predicted == dataset.test_labels).mean() == accuracy
    some = functions.outputs(state, key, "test", rows[[7, 3]])
    np.testing.assert_array_equal(some.argmax(axis=-1), predicted[[7, 3]])


def test_a_recording_has_the_same_images_at_every_epoch(functions, dataset):
    rows = []
    found = record(TINY, functions, dataset, 0, epochs=(0, 2), num_outputs=1000, report=rows.append)
    assert found.train.shape == (2, 256, 10)
    assert found.held_out.shape == (2, len(dataset.test_labels), 10)
    np.testing.assert_allclose(np.exp(found.train).sum(axis=-1), 1, rtol=1e-5)
    last = found.pairs("held_out", 1)
    assert (last.probabilities.argmax(-1) == last.labels).mean() == rows[-1]["accuracy"]
    fewer = record(TINY, functions, dataset, 0, epochs=(2,), num_outputs=200)
    assert fewer.train.shape == (1, 192, 10)  # whole batches of 64
    np.testing.assert_array_equal(fewer.held_out[0], found.held_out[1, :200])
    np.testing.assert_array_equal(fewer.train_labels, found.train_labels[:192])
    other = record(TINY, functions, dataset, 1, epochs=(0,), num_outputs=1000)
    np.testing.assert_array_equal(other.train_labels, found.train_labels)
    assert not np.array_equal(other.train[0], found.train[0])


def test_references_are_equally_many_pairs_and_the_control_is_near(references):
    references, fresh = references
    assert list(references) == ["mixture", *REGIMES]
    for index, (name, pairs) in enumerate(references.items()):
        assert len(pairs.labels) == 128
        if name != "mixture":
            assert (pairs.regimes == index - 1).all()
    near = compare_pairs(fresh, references["mixture"], 2.0)
    far = compare_pairs(references["untrained"], references["confident_wrong"], 2.0)
    assert near["coverage"] > 0.85
    assert near["p"] > 0.01
    assert far["coverage"] == 0
    assert far["p"] < 1e-6
    assert far["accuracy"] > 0.95 > near["accuracy"]
    for name in ("divergence", "mmd", "wasserstein/entropy"):
        assert far[name] > 4 * abs(near[name]), name
    found = [value for name, value in near.items() if name.startswith("divergence/")]
    assert near["divergence"] == pytest.approx(np.mean(found))


def test_ranking_is_that_of_held_out_pairs(references):
    loss, pairs = load_pretrained(), references[0]["mixture"]
    ranking = make_ranking(loss)
    found = ranking(pairs)
    log_p = log_probabilities(pairs.probabilities)
    expected = rank_metrics(
        loss(log_p, pairs.labels) / loss.scale,  # the network's own scale, as when evolved
        SEVERITIES["surprisal"](log_p, pairs.labels),
        pairs.regimes,
        margin=MARGINS["proportional"],
    )
    assert "violated_margins/uniform" in expected
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-3), name
    assert found["descent_rate"] == 1
    worse = make_ranking(loss.replace(params=jax.tree.map(jnp.negative, loss.params)))
    assert worse(pairs)["pairwise_accuracy"] < 0.9
    outputs = ranking(Pairs(pairs.probabilities, pairs.labels, np.full_like(pairs.regimes, -1)))
    assert "pairwise_accuracy/uniform" not in outputs
    assert outputs["kendall_tau"] == found["kendall_tau"]


def test_study_writes_tables_figures_and_a_finding(run):
    folder, results = run
    assert [table.name for table in results.tables] == [
        "transfer",
        "distances",
        "summaries",
        "ranking",
    ]
    for table in results.tables:
        for ending in ("md", "csv", "json"):
            assert (folder / f"{table.name}.{ending}").stat().st_size > 200
    for figure in results.figures:
        assert (folder / f"{figure.name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (folder / f"{figure.name}.svg").read_bytes()[:1000]
    rows = json.loads((folder / "transfer.json").read_text())
    assert [(row["part"], row["epoch"]) for row in rows] == [
        (None, None),
        *[(part, epoch) for epoch in (0, 2) for part in ("train", "held_out")],
    ]
    # The finding's numbers are those of the tables.
    first, last = rows[1], rows[3]
    assert f"nearest regime is {first['nearest']} at epoch 0" in results.finding
    assert f"{first['divergence']:.2f} and {last['divergence']:.2f} bits" in results.finding
    assert f"{rows[0]['coverage']:.1%} of fresh" in results.finding
    assert len(json.loads((folder / "distances.json").read_text())) == 5 * 8


def test_nothing_finished_is_run_again(run, monkeypatch):
    folder, results = run
    ran = []
    original = recording.run_training

    def run_training(config, functions, seeds, **options):
        ran.extend(seeds)
        return original(config, functions, seeds, **options)

    monkeypatch.setattr(recording, "run_training", run_training)
    whole = (folder / "comparisons.jsonl").read_text()
    assert len(whole.splitlines()) == 1 + 2 * 2 * 2
    # Stopped after the first training, and within the comparisons: the fourth was cut short.
    (folder / "outputs-0-1.npz").unlink()
    lines = whole.splitlines(keepends=True)
    (folder / "comparisons.jsonl").write_text("".join(lines[:3]) + lines[3][:50])
    compared = []
    monkeypatch.setattr(
        sys.modules[transfer.__module__],
        "compare_pairs",
        lambda *args: compared.append(args) or compare_pairs(*args),
    )
    monkeypatch.setattr(StudyResults, "write", lambda *_: None)  # takes long, and was written
    again = transfer(SMALL, run_dir=folder)
    assert ran == [1]
    assert len(compared) == 8 * (9 - 3)
    assert again.finding == results.finding
    assert (folder / "comparisons.jsonl").read_text() == whole


def test_sigterm_stops_a_transfer_and_what_had_ended_is_kept(run, tmp_path, monkeypatch):
    folder, _ = run
    stopped, study = tmp_path / "run", sys.modules[transfer.__module__]
    shutil.copytree(folder, stopped)
    (stopped / "outputs-0-1.npz").unlink()
    (stopped / "comparisons.jsonl").unlink()

    def record(*_, report, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        report({})

    def compared(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return compare_pairs(*args)

    with monkeypatch.context() as patch:
        patch.setattr(study, "record", record)
        with pytest.raises(Preempted, match="told to stop by SIGTERM"):
            transfer(SMALL, run_dir=stopped)
    assert (stopped / "outputs-0-0.npz").read_bytes() == (folder / "outputs-0-0.npz").read_bytes()
    shutil.copy(folder / "outputs-0-1.npz", stopped)
    monkeypatch.setattr(study, "compare_pairs", compared)
    with pytest.raises(Preempted, match="told to stop by SIGTERM"):
        transfer(SMALL, run_dir=stopped)
    whole = (folder / "comparisons.jsonl").read_text()
    assert (stopped / "comparisons.jsonl").read_text() == whole.splitlines(True)[0]


def test_a_damaged_or_foreign_recording_is_refused(run, tmp_path):
    folder, _ = run
    path = folder / "outputs-0-0.npz"
    with pytest.raises(RunFolderError, match="damaged"):
        load_recording(path, (0, 1))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match="Remove it"):
        load_recording(broken, (0, 2))
    whole = path.read_bytes()
    for place in range(0, 400, 3):  # the head of the archive, and of its first array
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(RunFolderError):  # or it is a byte that says nothing
            assert load_recording(broken, (0, 2)).epochs.tolist() == [0, 2]
    with pytest.raises(RunFolderError, match=r"cannot be read .*left as it is"):
        load_recording(tmp_path, (0, 2))


def test_what_the_end_needs_is_asked_for_at_the_beginning(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name)
    )
    with pytest.raises(EDLError, match="studies need sklearn"):
        transfer(SMALL, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ()}, "losses is"),
        ({"epochs": ()}, "epochs is"),
        ({"epochs": (2, 1)}, "increasing"),
        ({"epochs": (0, 3)}, "none later than the last"),
        ({"evolved": "cross_entropy"}, "expected an evolved loss"),
        ({"evolved": "gce(q=0.5)"}, "evolved is 'gce\\(q=0.5\\)'; expected an evolved loss"),
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
