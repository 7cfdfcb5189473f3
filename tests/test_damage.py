"""Damage to a run folder, and reads that fail for now: a run resumes, or says how; nothing is lost.

The cases are of toy runs: a checkpoint every two steps, a row for each step and one for each save.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from edl_jax.checkpoints import Checkpoints
from edl_jax.errors import EDLError, RunFolderError
from edl_jax.evolution import loop as evolution_loop
from edl_jax.evolution.loop import HELD_OUT_FILE
from edl_jax.resuming import RowLog, resume
from edl_jax.runs import RunFolder, open_run
from edl_jax.training import loop as training_loop
from tests.test_resume import ROOT, flip, truncate

# Orbax leaves coroutines behind where it meets a damaged file.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
STEPS = 6
LOGS = (
    RowLog("metrics.jsonl", "n", lambda step: list(range(step))),
    RowLog("saves.jsonl", "n", lambda step: list(range(1, step, 2))),
)


def tree(step):
    return {"a": np.arange(1000.0, dtype=np.float32) + step, "b": np.uint32(7)}


def write(folder, checkpoints, step):
    folder.append_rows({"n": n} for n in range(step - 2, step))
    folder.append_rows([{"n": step - 1}], "saves.jsonl")
    checkpoints.save(step, tree(step), score=0.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "run"
    folder = RunFolder(path, {"toy": 1})
    with Checkpoints(path / "checkpoints", keep=3) as checkpoints:
        for step in range(2, STEPS + 1, 2):
            write(folder, checkpoints, step)
    return path


@pytest.fixture
def run(toy, tmp_path):
    return Path(shutil.copytree(toy, tmp_path / "run"))


def resumed(path):
    """The step from which a run resumes, after a look that all of it is right."""
    with (
        open_run(path, {"toy": 1}) as folder,
        Checkpoints(path / "checkpoints", keep=3) as checkpoints,
    ):
        step, found, rows = resume(folder, checkpoints, tree(0), LOGS, first_step=2)
        if step:
            np.testing.assert_array_equal(found["a"], tree(step)["a"])
        for log, own in zip(LOGS, rows, strict=True):
            assert [row["n"] for row in own] == log.due(step)
            assert folder.read_rows(log.name) == own
        if step < STEPS:  # and it runs on
            write(folder, checkpoints, step + 2)
    return step


def contents(path):
    """All that is in a folder, but who used it last."""
    files = (x for x in path.rglob("*") if x.name != ".lock")
    return {str(x.relative_to(path)): x.is_file() and x.read_bytes() for x in files}


def assert_refused(path, match):
    """It is refused in a message of a screen at most, and nothing is changed."""
    before = contents(path)
    with pytest.raises(RunFolderError, match=match) as told:
        resumed(path)
    assert len(str(told.value)) < 1500
    assert contents(path) == before


def edit(name, change):
    def damage(path):
        lines = (path / name).read_text().splitlines(keepends=True)
        (path / name).write_text("".join(change(lines)))

    return damage


def remove(name):
    return lambda path: (path / name).unlink()


def lost(number):
    return lambda lines: lines[:number] + lines[number + 1 :]


def doubled(number):
    return lambda lines: lines[: number + 1] + lines[number:]


def cut(lines):
    return [*lines[:-1], lines[-1][:3]]


LEADS_ON = {
    "nothing": (lambda path: None, 6),
    "a row is lost": (edit("metrics.jsonl", lost(3)), 2),
    "the last row is lost": (edit("metrics.jsonl", lost(5)), 4),
    "the last row is cut": (edit("metrics.jsonl", cut), 4),
    "the last row is empty": (edit("metrics.jsonl", lambda x: [*x[:-1], "{}\n"]), 4),
    "a row is doubled": (edit("metrics.jsonl", doubled(4)), 4),
    "rows are swapped": (edit("metrics.jsonl", lambda x: [*x[:4], x[5], x[4]]), 4),
    "a save's row is lost": (edit("saves.jsonl", lost(2)), 4),
    "a save's row is cut": (edit("saves.jsonl", cut), 4),
    "a save's row is doubled": (edit("saves.jsonl", doubled(2)), 4),
    "rows after the checkpoint": (edit("metrics.jsonl", lambda x: [*x, '{"n": 6}\n']), 6),
    "a strange folder": (lambda path: (path / "checkpoints" / "²").mkdir(), 6),
    "a strange file": (lambda path: (path / "checkpoints" / "06").write_text("x"), 6),
    "a taken name": (
        lambda path: (
            flip(path / "checkpoints/6/record/metadata"),
            (path / "damaged-checkpoint-6-0").write_text("mine"),
        ),
        4,
    ),
    "a file for a checkpoint": (
        lambda path: (
            shutil.rmtree(path / "checkpoints/6"),
            (path / "checkpoints/6").write_text(""),
        ),
        4,
    ),
    "deep JSON": (
        lambda path: (path / "checkpoints/6/record/metadata").write_text("[" * 99_999),
        4,
    ),
    "a pipe": (
        lambda path: (
            (path / "checkpoints/6/state/_METADATA").unlink(),
            os.mkfifo(path / "checkpoints/6/state/_METADATA"),
        ),
        4,
    ),
    "no environment": (remove("environment.json"), 6),
}


@pytest.mark.parametrize("what", LEADS_ON)
def test_a_damaged_run_resumes_from_the_newest_checkpoint_that_fits(run, what):
    damage, expected = LEADS_ON[what]
    damage(run)
    assert resumed(run) == expected
    assert resumed(run) == min(expected + 2, STEPS)


DEAD_ENDS = {
    "the first row is lost": (edit("metrics.jsonl", lost(0)), "n 6 but metrics of 5 ns"),
    "the first row is doubled": (edit("metrics.jsonl", doubled(0)), "n 6 but metrics of 7 ns"),
    "all rows twice": (edit("metrics.jsonl", lambda x: x + x), "n 6 but metrics of 12 ns"),
    "no rows": (remove("metrics.jsonl"), "n 6 but metrics of 0 ns"),
    "no rows of saves": (remove("saves.jsonl"), "n 6 but saves of 0 ns"),
    "an empty row": (
        edit("metrics.jsonl", lambda x: [*x[:3], "{}\n", *x[4:]]),
        r"line 4 of 6 of .* is damaged \(it has no 'n'\).*remove that line to resume",
    ),
    "a row without a number": (
        edit("metrics.jsonl", lambda x: [*x[:3], '{"n": "3"}\n', *x[4:]]),
        "its n is '3'",
    ),
    "a deep row": (
        edit("metrics.jsonl", lambda x: [*x[:3], "[" * 99_999 + "\n", *x[4:]]),
        "line 4 of 6 of .* is damaged",
    ),
    "a long row": (
        edit("metrics.jsonl", lambda x: [*x[:3], json.dumps("x" * 99_999) + "\n", *x[4:]]),
        "line 4 of 6 of .* is damaged",
    ),
    "rows in a pipe": (
        lambda path: ((path / "metrics.jsonl").unlink(), os.mkfifo(path / "metrics.jsonl")),
        "is a pipe, socket or device",
    ),
    "rows in a folder": (
        lambda path: ((path / "metrics.jsonl").unlink(), (path / "metrics.jsonl").mkdir()),
        "is a folder; expected a file",
    ),
    "configuration in a pipe": (
        lambda path: ((path / "config.json").unlink(), os.mkfifo(path / "config.json")),
        "is a pipe, socket or device",
    ),
    "deep configuration": (
        lambda path: (path / "config.json").write_text("[" * 99_999),
        "config.json is damaged",
    ),
    "another configuration": (
        lambda path: (path / "config.json").write_text(json.dumps({"toy": list(range(99_999))})),
        "another configuration: toy is .* there and 1 here",
    ),
    "a damaged environment": (
        lambda path: (path / "environment.json").write_text("[" * 99_999),
        "environment.json is damaged .*remove that file to resume",
    ),
    "a lock that is a pipe": (
        lambda path: ((path / ".lock").unlink(missing_ok=True), os.mkfifo(path / ".lock")),
        "is a pipe, socket or device",
    ),
    "every checkpoint is damaged": (
        lambda path: [truncate(x) for x in path.glob("checkpoints/*/record/metadata")],
        r"no checkpoint in .* can be used; that of step 6 is damaged.*left as it is.*rename",
    ),
    "no checkpoints": (
        lambda path: shutil.rmtree(path / "checkpoints"),
        r"6 rows in metrics\.jsonl but no checkpoint.*Nothing was changed.*rename",
    ),
}


@pytest.mark.parametrize("what", DEAD_ENDS)
def test_what_cannot_be_mended_is_said_and_left_as_it_is(run, what):
    damage, match = DEAD_ENDS[what]
    damage(run)
    (run / "checkpoints").mkdir(exist_ok=True)
    assert_refused(run, match)


def test_following_the_advice_to_remove_a_line_leads_on(run):
    edit("metrics.jsonl", lambda x: [*x[:4], "{}\n", *x[5:]])(run)
    assert_refused(run, "line 5 of 6 .*remove that line")
    edit("metrics.jsonl", lost(4))(run)
    assert resumed(run) == 4
    assert (run / "unused-checkpoint-6-0").is_dir()  # it is whole, and may be wanted


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=lambda f: f.__name__)
def test_a_checkpoint_whose_record_is_damaged_is_not_taken_for_another_versions(run, damage):
    record = run / "checkpoints" / "6" / "record" / "metadata"
    if damage is flip:  # a bit that leaves it JSON
        record.write_text(record.read_text().replace("float32[1000]", "float32[1001]"))
    else:
        damage(record)
    assert resumed(run) == 4
    assert (run / "damaged-checkpoint-6-0").is_dir()


STATUSES = ["UNKNOWN", "ABORTED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE"]
PASSING = {
    "EIO": OSError(errno.EIO, "not now"),
    "EMFILE": OSError(errno.EMFILE, "not now"),
    "no thread": RuntimeError("can't start new thread, not now"),
    **{status: ValueError(f"{status}: Error reading, not now") for status in STATUSES},
}


@pytest.mark.parametrize("what", PASSING)
def test_a_read_that_fails_for_now_moves_and_empties_nothing(run, what, monkeypatch):
    def refuse(*_, **__):
        raise PASSING[what]

    with monkeypatch.context() as patch:
        restored = Checkpoints._restored

        def failing(self, step, like):
            patch.setattr(self._manager, "restore", refuse)
            return restored(self, step, like)

        patch.setattr(Checkpoints, "_restored", failing)
        assert_refused(run, r"step 6 .* cannot be read .*not now.*left as it is")
    assert resumed(run) == STEPS


AS_ANOTHER_USER = """
import re, sys
from edl_jax import checkpoints
from tests.test_damage import *
from tests.test_resume import files_of
checkpoints._PASSING = re.compile("as if TensorStore's words were others")
run = Path(sys.argv[1])
newest = run / "checkpoints" / "6"
files, folders = files_of(newest), [x for x in newest.rglob("*") if x.is_dir()]
for paths in (files, *([x] for x in [*files, *folders, newest])):
    modes = [x.stat().st_mode for x in paths]
    for path in paths:
        path.chmod(0)
    with pytest.raises(RunFolderError, match="cannot be read .*Permission denied"):
        resumed(run)
    for path, mode in zip(paths, modes):
        path.chmod(mode)
    assert not [*run.glob("*-checkpoint-*")], paths
assert resumed(run) == STEPS
"""


def test_an_ordinary_user_without_leave_to_read_loses_nothing(toy):
    """Root may read all, so that the process is another user's."""
    with tempfile.TemporaryDirectory() as own:  # pytest's folders are closed to others
        run = shutil.copytree(toy, Path(own) / "run")
        command = [sys.executable, "-c", AS_ANOTHER_USER, str(run)]
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("root may read all, and there is no setpriv to become another user")
            subprocess.run(["chown", "-R", "65534:65534", own], check=True)
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_too_little_memory_is_said_to_be_that(run, monkeypatch):
    errors = [
        MemoryError("Unable to allocate 9 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ]
    before = contents(run)
    for error in errors:

        def refuse(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "_record", refuse)
            if isinstance(error, MemoryError):
                with pytest.raises(EDLError, match=r"not enough memory \(Unable.*with more memory"):
                    resumed(run)
        with pytest.raises(EDLError, match="not enough memory"), open_run(run, {"toy": 1}):
            raise error
    with pytest.raises(RuntimeError, match="other"), open_run(run, {"toy": 1}):
        raise RuntimeError("other")
    assert contents(run) == before


def train_rows(path, step):
    """As a training of four steps an epoch takes it up."""
    with Checkpoints(path / "checkpoints", keep=3) as checkpoints:
        (found, rows), _ = training_loop._taken_up(tree(0), RunFolder(path, {}), checkpoints, 4)
    assert found == step
    return [row["epoch"] for row in rows]


@pytest.mark.parametrize(
    ("epochs", "saved", "step"),
    [
        ([1, 2, 3], [4, 8], 8),  # the third epoch was not saved
        ([1, 2], [4, 8, 10], 10),  # saved within the third
        ([1], [4, 8], 4),
        ([1, 2, 2], [4, 8], 4),
        ([1], [], 0),
        ([], [3], 3),
        ([1, 1, 2, 2], [4, 8], None),
        ([1, 2, 1, 2], [4, 8], None),
        ([2], [4, 8], None),
        ([1, 2], [], None),
    ],
    ids=str,
)
def test_a_training_notices_missing_and_surplus_rows(tmp_path, epochs, saved, step):
    RunFolder(tmp_path, {}).append_rows({"epoch": epoch} for epoch in epochs)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for each in saved:
            checkpoints.save(each, tree(each), score=0.0)
    if step is not None:
        assert train_rows(tmp_path, step) == list(range(1, step // 4 + 1))
        return
    with pytest.raises(RunFolderError, match=r"epoch 2 but metrics of \d epochs|no checkpoint"):
        train_rows(tmp_path, step)


@pytest.mark.parametrize(
    ("chunks", "saved", "step"),
    [
        ([4, 9, 12], [5, 10, 13], 13),  # 13 generations in chunks of 5
        ([4, 9], [5, 10, 13], 10),
        ([4, 9, 9], [5, 10], 5),
        ([4, 9, 14], [5, 10], 10),
        ([3, 9], [5, 10], None),
        ([4], [], 0),
        ([4, 9], [], None),
    ],
    ids=str,
)
def test_a_pretraining_notices_missing_and_surplus_held_out_rows(tmp_path, chunks, saved, step):
    folder = RunFolder(tmp_path, {})
    folder.append_rows({"generation": n} for n in range(max([*saved, 5])))
    folder.append_rows(({"generation": n} for n in chunks), HELD_OUT_FILE)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for each in saved:
            checkpoints.save(each, tree(each), score=0.0)
        if step is None:
            with pytest.raises(RunFolderError, match=r"but held_out of \d gen|no checkpoint"):
                evolution_loop._taken_up(tree(0), folder, checkpoints, 5)
            return
        (first, rows, held_out), _ = evolution_loop._taken_up(tree(0), folder, checkpoints, 5)
    assert first == step
    assert [row["generation"] for row in rows] == list(range(step))
    assert [row["generation"] for row in held_out] == [n for n in chunks if n < step]
