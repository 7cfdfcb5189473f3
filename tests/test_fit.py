"""The loop that drives every run: what it tells, saves and resumes."""

import errno
import io
import os
import signal
import subprocess
import sys

import jax
import pytest

from edl_jax.errors import DivergedError, Preempted
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import open_run
from tests.event_files import shown
from tests.toy_runs import STEPS, ToyRun, due

KEY = jax.random.key(0)
NONE = "No checkpoint was kept: there is no run folder, or it was in the first period."


def numbers(found):
    return [[row["n"] for row in rows] for rows in found.rows]


def in_folder(path, run=None, **options):
    with open_run(path, {}) as folder:
        return fit(run or ToyRun(), KEY, folder=folder, keep=1, **options)


def checkpoints(path):
    return sorted(int(x.name) for x in (path / "checkpoints").iterdir())


def test_a_run_is_measured_watched_and_saved_after_every_period(tmp_path):
    seen = []
    found = in_folder(tmp_path, watch=lambda done, state, row: seen.append((done, row)))
    assert numbers(found) == due(STEPS)
    assert int(found.state["n"]) == STEPS
    assert [done for done, _ in seen] == [0, 2, 4, 6]
    assert [row for _, row in seen[1:]] == found.rows[1]
    assert checkpoints(tmp_path) == [6]
    assert shown(tmp_path)[5, "saves/x"] == 6.0
    assert in_folder(tmp_path).rows == found.rows


def test_sigterm_saves_within_a_period_and_the_run_resumes_from_there(tmp_path):
    class Stopped(ToyRun):
        def advance(self, state, n):
            if int(state["n"]) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().advance(state, n)

    with pytest.raises(Preempted, match="by SIGTERM after step 3 of 6; everything is saved"):
        in_folder(tmp_path, Stopped())
    assert checkpoints(tmp_path) == [3]
    seen = []
    found = in_folder(tmp_path, watch=lambda done, state, row: seen.append(done))
    assert seen == [4, 6]
    assert numbers(found) == due(STEPS)
    assert checkpoints(tmp_path) == [6]


@pytest.mark.parametrize(
    ("at", "has_folder", "kept"),
    [
        (
            0,
            False,
            "No checkpoint was kept: there is no run folder, or it was in the first period.",
        ),
        (1, True, "No checkpoint was kept: there is no run folder, or it was in the first period."),
        (5, True, "The last good checkpoint is that of step 4 ({}/checkpoints/4)."),
    ],
)
def test_a_run_that_diverges_names_its_last_good_checkpoint(tmp_path, at, has_folder, kept):
    class Diverges(ToyRun):
        def advance(self, state, n):
            if int(state["n"]) == at:
                raise DivergedError("It diverged.")
            return super().advance(state, n)

    with pytest.raises(DivergedError) as told:
        in_folder(tmp_path, Diverges()) if has_folder else fit(Diverges(), KEY)
    assert str(told.value) == f"It diverged. {kept.format(tmp_path)}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_a_line_for_each_period_and_a_terminal_a_bar(monkeypatch):
    told = {}
    for name, stream in [("file", io.StringIO()), ("terminal", Terminal()), ("quiet", Terminal())]:
        monkeypatch.setattr(sys, "stderr", stream)
        fit(ToyRun(), KEY, progress=name != "quiet")
        told[name] = stream.getvalue()
    lines = told["file"].splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"toy: {n} of 6 steps" for n in (2, 4, 6)]
    for n, line in zip((2, 4, 6), lines, strict=True):
        assert " left, " in line
        assert "step/s" in line
        assert line.endswith(f"x {n}")
    assert "\r" not in told["file"]
    assert "\r" in told["terminal"]
    assert "6/6" in told["terminal"]
    assert told["quiet"] == ""


class Gone(io.StringIO):
    def __init__(self, error, is_terminal=False):
        super().__init__()
        self.error, self.is_terminal = error, is_terminal

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [
        None,
        Gone(OSError(errno.ENOSPC, "full")),
        Gone(OSError(errno.EIO, "gone"), is_terminal=True),
        Gone(OSError(errno.ENOSPC, "full"), is_terminal=True),
        Gone(BrokenPipeError()),
        Gone(ValueError("I/O operation on closed file")),
    ],
    ids=["closed", "full", "no terminal", "full terminal", "no reader", "closed since"],
)
def test_a_run_whose_progress_cannot_be_told_goes_on(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert numbers(fit(ToyRun(), KEY, progress=True)) == due(STEPS)


@pytest.mark.slow
def test_tensorboard_is_loaded_without_pytorch():
    """Which takes seconds where it is installed; later it can be loaded as ever."""
    pytest.importorskip("torch")
    loads = "import sys; from edl_jax.runs.fit import _load_tensorboard as load; load()"
    checks = "assert 'torch' not in sys.modules; import torch; torch.ones(1)"
    subprocess.run([sys.executable, "-c", f"{loads}; {checks}"], check=True)
