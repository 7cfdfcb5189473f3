"""Toy runs: a checkpoint every two steps, a row for each step and one for each save."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edl_jax.errors import RunFolderError
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.folder import RunFolder, open_run
from edl_jax.runs.resuming import RowLog, resume

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
