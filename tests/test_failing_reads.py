"""Reads that fail for now: the run stops, and nothing is moved or emptied."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import orbax.checkpoint
import pytest

from edl_jax.errors import EDLError
from edl_jax.runs import checkpoints
from edl_jax.runs.checkpoints import orbax_silent
from edl_jax.runs.folder import open_run
from tests.test_resume import ROOT
from tests.toy_runs import STEPS, assert_refused, contents, resumed, run, toy

__all__ = ["run", "toy"]
# Orbax leaves coroutines behind where it meets a damaged file.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

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
        patch.setattr(orbax.checkpoint.Checkpointer, "restore", refuse)
        assert_refused(run, r"checkpoints/6 cannot be read .*not now.*left as it is")
    assert resumed(run) == STEPS


def test_checkpoints_that_cannot_be_listed_for_now_are_left_as_they_are(run, monkeypatch):
    def refuse(path, iterdir=Path.iterdir):
        if path.name == "checkpoints":
            raise PASSING["EMFILE"]
        return iterdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        assert_refused(run, r"checkpoints cannot be read .*not now.*left as it is")
    assert resumed(run) == STEPS


@pytest.mark.parametrize(("failing", "shown"), [(True, 0), (False, 1)])
def test_what_threads_of_orbax_say_after_a_failure_is_not_printed(
    failing, shown, monkeypatch, caplog
):
    """They end later, and TensorStore still tells a loop that is closed of what it has done."""
    from orbax.checkpoint._src.futures.future import _SignalingThread

    seen, loggers = [], [logging.getLogger(name) for name in ("absl", "asyncio")]
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    for logger in loggers:
        monkeypatch.setattr(logger, "filters", [])
    with contextlib.suppress(OSError), orbax_silent():
        if failing:
            raise PASSING["EIO"]
    loop = asyncio.new_event_loop()
    loop.close()
    for late in (lambda: loop.call_soon_threadsafe(print), lambda: {}["other"]):
        with pytest.raises((RuntimeError, KeyError)) as told:
            late()
        unraisable: Any = SimpleNamespace(exc_value=told.value, exc_traceback=told.tb)
        sys.unraisablehook(unraisable)
    assert [type(x.exc_value) for x in seen] == [RuntimeError] * shown + [KeyError]
    thread = _SignalingThread(send_signals=[], receive_signals=[], target=lambda: {}["late"])
    thread.start()
    with pytest.raises(KeyError):
        thread.join()
    loggers[0].error("ours")
    assert [record.levelname for record in caplog.records] == ["ERROR"] * (shown + 1)


AS_ANOTHER_USER = """
import re, sys
from edl_jax.runs import checkpoints
from pathlib import Path
import pytest
from edl_jax.errors import RunFolderError
from tests.test_resume import files_of
from tests.toy_runs import STEPS, resumed
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


@pytest.mark.slow
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
            patch.setattr(checkpoints, "_read", refuse)
            if isinstance(error, MemoryError):
                with pytest.raises(EDLError, match=r"not enough memory \(Unable.*with more memory"):
                    resumed(run)
        with pytest.raises(EDLError, match="not enough memory"), open_run(run, {"toy": 1}):
            raise error
    with pytest.raises(RuntimeError, match="other"), open_run(run, {"toy": 1}):
        raise RuntimeError("other")
    assert contents(run) == before
