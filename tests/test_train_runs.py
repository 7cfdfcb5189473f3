"""A training that is killed, preempted or out of disk space loses nothing it had saved."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from edl_jax import train
from edl_jax.data import Augmentation
from edl_jax.errors import EDLError, Preempted, RunFolderError
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.folder import RunFolder, read_json
from edl_jax.training.trainer import Trainer
from tests.event_files import shown
from tests.full_disk import full_disk
from tests.test_processes import finish, free_port
from tests.test_training import CROSS_ENTROPY, DIGITS, PLAIN, assert_close

ROOT = Path(__file__).parents[1]
CONFIG = dataclasses.replace(
    DIGITS,
    epochs=4,
    augmentation=Augmentation(mixup=0.5),
    ema_decay=0.9,
    loss="cross_entropy",
    data=dataclasses.replace(DIGITS.data, train_examples=256, test_examples=100),
)
CONFIG_FILE = """
import dataclasses
from tests.test_train_runs import CONFIG
def get_config():
    return dataclasses.replace(CONFIG, epochs={epochs})
"""
# Orbax leaves coroutines behind where it cannot write.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache:UserWarning"),
]


@pytest.fixture(scope="module")
def whole(tiny_training):
    """A training that nothing interrupted: its folder and its result."""
    return tiny_training


def rows_of(run_dir):
    rows = RunFolder.read_rows(RunFolder(run_dir, read_json(run_dir / "config.json")))
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def assert_same(run_dir, whole):
    """The same metrics and result, to the bit."""
    assert rows_of(run_dir) == rows_of(whole[0])
    assert read_json(run_dir / "results.json") == read_json(whole[0] / "results.json")


def command(tmp_path, run_dir, *arguments, epochs=4):
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE.format(epochs=epochs))
    start = [sys.executable, "-m", "edl_jax", "train", "--config", str(config), "--quiet"]
    return [*start, "--run-dir", str(run_dir), *arguments]


def start(command, **environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, **pipes)


class Stop(Exception):
    pass


@pytest.mark.parametrize("before", [True, False], ids=["before a save", "after a save"])
def test_a_training_stopped_around_a_save_resumes_to_the_same_result(
    tmp_path, whole, before, monkeypatch
):
    save = Checkpoints.save

    def failing(self, step, tree, **options):
        if step == 8 and before:
            raise Stop
        save(self, step, tree, **options)
        if step == 8:
            raise Stop

    monkeypatch.setattr(Checkpoints, "save", failing)
    with pytest.raises(Stop):
        train(CONFIG, run_dir=tmp_path / "run")
    monkeypatch.undo()
    result = train(CONFIG, run_dir=tmp_path / "run")
    assert_same(tmp_path / "run", whole)
    assert_close(result.params, whole[1].params, rtol=0)
    numbers = {k: v for k, v in shown(tmp_path / "run").items() if k[1] != "images_per_second"}
    assert numbers == {k: v for k, v in shown(whole[0]).items() if k[1] != "images_per_second"}
    again = train(CONFIG, run_dir=tmp_path / "run")  # of a finished training: its result
    assert_close(again.params, whole[1].params, rtol=0)
    assert again.history == result.history


def test_sigterm_is_heeded_within_an_epoch_and_loses_no_step(tmp_path, whole, monkeypatch):
    original, chunks = Trainer.advance, []

    def advance(*arguments):
        chunks.append(1)
        if len(chunks) == 3:  # steps 0 to 2, 3, and now 4 to 6 of 4 an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(Trainer, "advance", advance)
    monkeypatch.setattr(Trainer, "chunk", 3)
    with pytest.raises(Preempted, match=r"after step 7 of 16; everything is saved"):
        train(CONFIG, run_dir=tmp_path / "run")
    monkeypatch.undo()
    assert len(rows_of(tmp_path / "run")) == 1
    train(CONFIG, run_dir=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path, whole):
    chance, met = random.Random(0), 0
    call, devices = (
        command(tmp_path, tmp_path / "run"),
        {"JAX_NUM_CPU_DEVICES": str(jax.device_count())},
    )
    for _ in range(3):
        process = start(call, **devices)
        rows = tmp_path / "run" / "metrics.jsonl"
        before = rows.stat().st_mtime_ns if rows.exists() else 0
        while process.poll() is None and not (rows.exists() and rows.stat().st_mtime_ns != before):
            time.sleep(0.005)
        time.sleep(chance.expovariate(1 / 0.1))
        met += process.poll() is None
        process.kill()
        process.communicate()
    status, _, err = finish(start(call, **devices))
    assert status == 0, err
    assert met >= 2
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_first_alone_writes(tmp_path):
    """With streamed images; `test_train_devices` shows that images in memory give the same."""
    arguments = ["--data.stream", "True", "--sync-batch-norm"]
    arguments += [f"--processes.coordinator=127.0.0.1:{free_port()}", "--processes.num-processes=2"]
    processes = [
        start(
            [
                *command(tmp_path, tmp_path / f"run{index}", *arguments, epochs=1),
                f"--processes.process-id={index}",
            ]
        )
        for index in range(2)
    ]
    for process in processes:
        status, _, err = finish(process)
        assert status == 0, err
    assert not (tmp_path / "run1").exists()
    (row,) = rows_of(tmp_path / "run0")
    alone = train(dataclasses.replace(CONFIG, epochs=1, sync_batch_norm=True)).history[0]
    assert row["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
    assert row["accuracy"] == pytest.approx(alone["accuracy"], abs=0.02)


def test_a_full_disk_ends_the_training_and_it_resumes_when_there_is_room(tmp_path, whole):
    with (
        full_disk(2_500),
        pytest.raises(RunFolderError, match=r"could not be written.*(make|is) room"),
    ):
        train(CONFIG, run_dir=tmp_path / "run")
    train(CONFIG, run_dir=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_divergence_names_the_last_good_checkpoint(tmp_path):
    """The loss turns to NaN once it is small, which takes more than an epoch."""

    def fragile(logits, labels):
        losses = CROSS_ENTROPY(logits, labels)
        return jnp.where(losses.mean() < 2.1, jnp.nan, losses)

    config = dataclasses.replace(CONFIG, model="small", epochs=12, augmentation=PLAIN)
    where = r"last good checkpoint is that of step \d+ \(.*\d\)"
    with pytest.raises(EDLError, match=where) as told:
        train(config, loss=fragile, run_dir=tmp_path / "run")
    step = int(str(told.value).split("checkpoint is that of step ")[1].split(" ")[0])
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert step % 4 == 0


def test_the_last_two_checkpoints_are_kept(whole):
    run_dir, _ = whole
    assert sorted(int(x.name) for x in (run_dir / "checkpoints").iterdir()) == [12, 16]


def test_the_event_file_holds_every_number_of_every_epoch(whole):
    run_dir, result = whole
    found = shown(run_dir)
    for row in result.history:
        for name in ("train_loss", "accuracy", "learning_rate"):
            assert found[row["epoch"], name] == pytest.approx(row[name], rel=1e-6)
    assert not any(tag == "evaluated_on" for _, tag in found)
    assert '"epochs": 4' in found[0, "config/text_summary"]
