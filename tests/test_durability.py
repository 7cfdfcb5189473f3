"""The order in which a run reaches the disk: what a power cut leaves must be enough to resume."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from edl_jax.runs import fit
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.folder import RunFolder, open_run
from edl_jax.runs.storage import append, open_atomically, write_atomically
from tests import power_cut
from tests.test_resume import heeds_ctrl_c
from tests.toy_runs import ToyRun, files_of

__all__ = ["heeds_ctrl_c"]


@pytest.fixture
def calls(monkeypatch):
    """What is synced, renamed and removed, in order: `(what, path)`, the new path of a rename."""
    found = []

    def record(module, name, what, path_of):
        original = getattr(module, name)

        def recorded(*arguments, **options):
            path = path_of(*arguments)
            result = original(*arguments, **options)
            found.append((what, Path(path)))
            return result

        monkeypatch.setattr(module, name, recorded)

    record(os, "fsync", "sync", lambda handle: os.readlink(f"/proc/self/fd/{handle}"))
    record(os, "rename", "name", lambda old, new: new)
    record(os, "replace", "name", lambda old, new: new)
    record(shutil, "rmtree", "remove", lambda path, *_: path)
    return found


def test_a_file_is_synced_before_its_name_and_its_name_before_it_counts(tmp_path, calls):
    write_atomically(tmp_path / "a" / "b" / "file", b"1")
    synced, named, *rest = [call for call in calls if call[1].parent == tmp_path / "a" / "b"]
    assert synced[0] == "sync"
    assert synced[1].name.startswith(".file.")
    assert named == ("name", tmp_path / "a" / "b" / "file")
    assert not rest
    assert calls[-1] == ("sync", tmp_path / "a" / "b")
    assert calls.index(("sync", tmp_path / "a")) < calls.index(synced)  # that has b
    assert calls.index(("sync", tmp_path)) < calls.index(synced)


def test_rows_and_the_name_of_their_file_are_synced(tmp_path, calls):
    append(tmp_path / "rows", b"1\n")
    assert calls == [("sync", tmp_path / "rows"), ("sync", tmp_path)]
    append(tmp_path / "rows", b"2\n")
    assert calls[2:] == [("sync", tmp_path / "rows")]


def test_a_checkpoint_counts_once_all_of_it_is_synced_and_only_then_is_an_old_one_deleted(
    tmp_path, calls
):
    folder = RunFolder(tmp_path, {})
    path = tmp_path / "checkpoints"
    state = {"a": np.arange(1000.0)}
    with Checkpoints(path, keep=1, files=files_of(tmp_path)) as checkpoints:
        checkpoints.restore_latest(state)
        checkpoints.save(1, state)
        rows = [{"n": 1, "x": 2.0}]
        keeper = fit._Keeper(ToyRun(), state)
        keeper._checkpoints, keeper._folder, keeper._board = checkpoints, folder, mock.Mock()
        calls.clear()
        keeper.save(2, state, rows, rows[0])
    assert [int(x.name) for x in path.iterdir()] == [2]

    def when(what, where):
        return [n for n, call in enumerate(calls) if call == (what, where)]

    (complete,) = when("name", path / "2")
    (deleted,) = [n for n, (what, where) in enumerate(calls) if what == "remove"]
    assert calls[deleted][1].parent == path
    for name in ("metrics.jsonl", "saves.jsonl"):
        assert max(when("sync", tmp_path / name)) < complete
    assert len([*(path / "2").rglob("*")]) > 10
    for part in [path, path / "2", *(path / "2").rglob("*")]:
        assert [n for n in when("sync", part) if complete < n < deleted], part
    # The folder that has its name comes last.
    assert max(when("sync", path)) > max(when("sync", path / "2"))


def test_two_signals_at_once_leave_no_temporary_file(tmp_path, heeds_ctrl_c, monkeypatch):
    """The second comes while what the first has left is cleared away."""
    unlink, signals = os.unlink, []

    def interrupted(path):
        signal.raise_signal(signal.SIGINT)
        signals.append(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt), open_atomically(tmp_path / "file"):
        signal.raise_signal(signal.SIGINT)
    assert len(signals) == 1
    assert not [*tmp_path.iterdir()]


def test_signals_wait_for_a_file_that_is_being_written(tmp_path, heeds_ctrl_c, monkeypatch):
    fsync, met = os.fsync, []

    def interrupted(handle):
        if not met:
            met.append(handle)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        fsync(handle)

    raised = []

    def note(number):
        raised.append(number)
        assert (tmp_path / "file").read_bytes() == b"1"

    monkeypatch.setattr(os, "fsync", interrupted)
    raise_signal = signal.raise_signal
    monkeypatch.setattr(signal, "raise_signal", lambda x: note(x) if met[1:] else raise_signal(x))
    monkeypatch.setattr(os, "replace", lambda *x, f=os.replace: (met.append(0), f(*x)))
    write_atomically(tmp_path / "file", b"1")
    assert raised == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path):
    RunFolder(tmp_path, {})
    kept = [".mine", "a.tmp", ".b.edl-tmp.txt"]
    left = [
        ".metrics.jsonl.abc.edl-tmp",
        "losses/.x.abc.edl-tmp",
        "checkpoints/.deleted.edl-tmp/3/state",
    ]
    left += ["checkpoints/4.orbax-checkpoint-tmp/state"]
    for name in [*kept, *left]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    with open_run(tmp_path, {}), Checkpoints(tmp_path / "checkpoints", keep=1):
        for name in left:
            assert not (tmp_path / name).exists(), name
        assert not [*(tmp_path / "checkpoints").iterdir()]
        for name in kept:
            assert (tmp_path / name).exists(), name


def test_every_commit_that_worked_on_a_run_is_kept_and_another_one_is_said(
    tmp_path, monkeypatch, caplog
):
    now = ["first"]
    monkeypatch.setattr("edl_jax.runs.environment.commit", lambda: now[0])
    for name in ("first", "first", "second", "second", "third"):
        now[0] = name
        caplog.clear()
        RunFolder(tmp_path, {})
        said = f"commit is {'first' if name == 'second' else 'second'!r} there and {name!r} here"
        assert (said in caplog.text) == (name == "third") or name == "second"
    environment = json.loads((tmp_path / "environment.json").read_text())
    now[0] = None  # git cannot be asked
    RunFolder(tmp_path, {})
    assert json.loads((tmp_path / "environment.json").read_text()) == environment
    assert environment["commit"] == "first"
    assert [x["commit"] for x in environment["resumed_with"]] == ["second", "third"]
    assert all(x["versions"] == environment["versions"] for x in environment["resumed_with"])


@pytest.mark.slow
def test_a_power_cut_loses_nothing_but_the_work_since_the_last_checkpoint(tmp_path):
    if why := power_cut.cannot():
        pytest.skip(why)
    found = power_cut.cut_until_done(tmp_path / "run", 40, 1, random.Random(0))
    assert found == (1, 1, 0)
