"""A run that is killed, preempted, damaged or out of disk space loses nothing it had saved."""

import dataclasses
import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint
import pytest

from edl_jax import pretrain
from edl_jax.errors import RunFolderError
from edl_jax.runs.checkpoints import Checkpoints
from tests.full_disk import full_disk
from tests.kill_and_resume import ROOT, differences, kill_until_done
from tests.test_evolution import TINY

GENERATIONS = 40

# Orbax leaves coroutines behind where it meets a damaged file, or cannot write.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    pretrain(dataclasses.replace(TINY, generations=GENERATIONS), run_dir=run_dir)
    return run_dir


@pytest.fixture(scope="module")
def short(tiny_pretraining):
    return tiny_pretraining[0]


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path, whole):
    found = kill_until_done(tmp_path / "run", GENERATIONS, 10, random.Random(0))
    assert found.survived == found.tries >= 5
    assert found.lost == 0
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_a_status_of_its_own(tmp_path, whole):
    config = tmp_path / "tiny.py"
    config.write_text(
        "import dataclasses\nfrom tests.test_evolution import TINY\n"
        f"def get_config(): return dataclasses.replace(TINY, generations={GENERATIONS})\n"
    )
    command = [sys.executable, "-m", "edl_jax", "pretrain", "--config", str(config)]
    command += ["--run-dir", str(tmp_path / "run"), "--quiet"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}  # as in `whole`
    statuses = []
    while not (tmp_path / "run" / "loss.safetensors").exists():
        assert len(statuses) < 5
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        metrics = tmp_path / "run" / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        while len(statuses) < 2 and process.poll() is None:
            if metrics.exists() and metrics.stat().st_mtime_ns != before:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.005)
        _, err = process.communicate()
        statuses.append(process.returncode)
        if process.returncode:
            assert process.returncode == 75, err
            assert "told to stop by SIGTERM after generation" in err
            said = [x for x in err.splitlines() if not x.startswith("WARNING:absl")]  # a slow save
            assert len(said) == 1
    assert statuses == [75, 75, 0]
    assert differences(whole, tmp_path / "run") == []


def test_sigterm_does_what_it_did_before_and_after_a_run(tmp_path):
    pretrain(TINY, run_dir=tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def tree(offset=0.0):
    return {
        "a": np.arange(1000.0, dtype=np.float32) + offset,
        "b": np.uint32(7),
        "c": (np.bool_(1),),
    }


def saved(path, steps=(1, 2, 3)):
    with Checkpoints(path, keep=3) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(step))


def restored(path):
    with Checkpoints(path, keep=3) as checkpoints:
        return checkpoints.restore_latest(tree())


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved(tmp_path / "checkpoints")
    step, found = restored(tmp_path / "checkpoints")
    assert step == 3
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree(3)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert restored(tmp_path / "empty")[0] == 0


def test_the_last_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, tree(step))
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # also by a run that resumes
        checkpoints.save(7, tree(7))
    assert sorted(int(x.name) for x in tmp_path.iterdir()) == [6, 7]


def files_of(folder: Path) -> list[Path]:
    return sorted(x for x in folder.rglob("*") if x.is_file() and x.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=lambda f: f.__name__)
def test_whatever_file_of_the_newest_checkpoint_is_damaged_the_result_is_right(
    tmp_path, damage, caplog
):
    """Damage that matters is reported and the one before is used; none gives wrong numbers."""
    saved(tmp_path / "sound" / "checkpoints")
    names = [x.relative_to(tmp_path / "sound") for x in files_of(tmp_path / "sound/checkpoints/3")]
    fell_back = 0
    for name in names:
        copy = tmp_path / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", copy)
        damage(copy / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="edl_jax.runs.checkpoints"):
            step, found = restored(copy / "checkpoints")
        np.testing.assert_array_equal(found["a"], tree(step)["a"])
        if step == 2:
            fell_back += 1
            assert "The checkpoint of step 3" in caplog.text
            assert "and is not used" in caplog.text
            assert (copy / "damaged-checkpoint-3-0").is_dir()  # nothing is lost
        else:
            assert step == 3, name
    assert fell_back >= 2


def test_an_old_checkpoint_that_is_damaged_leaves_the_newer_ones_alone(tmp_path):
    saved(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("{")
    step, found = restored(tmp_path / "checkpoints")
    assert step == 3
    np.testing.assert_array_equal(found["a"], tree(3)["a"])
    assert [x.name for x in tmp_path.glob("damaged*")] == ["damaged-checkpoint-1-0"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, number, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, "not now")

    saved(tmp_path / "checkpoints")
    with (
        Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints,
        monkeypatch.context() as patch,
    ):
        patch.setattr(orbax.checkpoint.Checkpointer, "restore", refuse)
        with pytest.raises(
            RunFolderError, match=r"checkpoints/3 cannot be read .*not now.*left as it is"
        ):
            checkpoints.restore_latest(tree())
    assert [x.name for x in tmp_path.iterdir()] == ["checkpoints"]
    assert restored(tmp_path / "checkpoints")[0] == 3


def test_a_checkpoint_of_another_version_is_refused_and_not_called_damaged(tmp_path):
    saved(tmp_path / "checkpoints")
    with (
        Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints,
        pytest.raises(RunFolderError, match="other arrays than this version"),
    ):
        checkpoints.restore_latest({"a": np.zeros(3)})
    assert restored(tmp_path / "checkpoints")[0] == 3


def test_a_run_resumes_from_before_a_damaged_checkpoint_to_the_same_result(tmp_path, short):
    shutil.copytree(short, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / str(TINY.generations)
    for data in newest.rglob("ocdbt.process_0/d/*"):  # the state is in one of them, or in several
        truncate(data)
    history = pretrain(TINY, run_dir=tmp_path / "run").history
    assert (tmp_path / "run" / f"damaged-checkpoint-{TINY.generations}-0").is_dir()
    assert differences(short, tmp_path / "run") == []
    rows = [json.loads(line) for line in (short / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(
        history["best_fitness"], np.float32([row["best_fitness"] for row in rows])
    )


@pytest.mark.parametrize("change", [lambda x: x[1:], lambda x: x[:1] + x])
def test_metrics_that_do_not_fit_the_checkpoint_are_refused(tmp_path, short, change):
    shutil.copytree(short, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(change(metrics.read_text().splitlines(keepends=True))))
    with pytest.raises(RunFolderError, match=r"step 5 is unused .*metrics\.jsonl are not"):
        pretrain(TINY, run_dir=tmp_path / "run")


@pytest.fixture
def heeds_ctrl_c():
    """Python's own handler, which a run in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_checkpoint_that_is_being_written(tmp_path, monkeypatch, heeds_ctrl_c):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save = checkpoints._manager.save

        def interrupted(*args, **options):
            signal.raise_signal(signal.SIGINT)
            return save(*args, **options)

        monkeypatch.setattr(checkpoints._manager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(4, tree(4))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert restored(tmp_path)[0] == 4


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, caplog):
    """A limit on the size of files makes writes fail as a full disk does."""
    saved(tmp_path)
    big = {"a": np.random.default_rng(0).normal(size=200_000)}
    with (
        Checkpoints(tmp_path, keep=3) as checkpoints,
        full_disk(50_000),
        pytest.raises(RunFolderError, match=r"step 4 could not be written.*make room"),
    ):
        checkpoints.save(4, big)
    assert not [x for x in caplog.records if x.exc_info]  # Orbax's tracebacks
    step, found = restored(tmp_path)
    assert step == 3
    np.testing.assert_array_equal(found["a"], tree(3)["a"])
    with Checkpoints(tmp_path, keep=3) as checkpoints:  # and with room again it goes on
        checkpoints.save(4, tree(4))
    assert restored(tmp_path)[0] == 4


@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache:UserWarning")
def test_a_run_on_a_full_disk_ends_with_an_error_and_resumes_when_there_is_room(tmp_path, short):
    """Some way into the run no file may grow any more: what comes first fails."""
    with (
        full_disk(2_500),
        pytest.raises(RunFolderError, match=r"could not be written.*(make|is) room"),
    ):
        pretrain(TINY, run_dir=tmp_path / "run")
    pretrain(TINY, run_dir=tmp_path / "run")
    assert differences(short, tmp_path / "run") == []
