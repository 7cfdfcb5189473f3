"""Toy runs: a checkpoint every two steps, a row for each step and one for each save."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from edl_jax.errors import RunFolderError
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.devices import device_mesh, to_every_device
from edl_jax.runs.folder import RunFolder, open_run

STEPS = 6


class ToyRun:
    """What `fit` drives: it adds one in each step, and is measured after every second."""

    name, unit, total, period, chunk = "toy", "step", STEPS, 2, 1

    def __init__(self):
        self.files, self.mesh = FILES, device_mesh("all", jax.devices()[:1])

    def init(self, key):
        return to_every_device({"n": np.int32(0)}, self.mesh)

    def advance(self, state, n):
        first = int(state["n"])
        return to_every_device({"n": np.int32(first + n)}, self.mesh), [
            {"n": each} for each in range(first, first + n)
        ]

    def measure(self, state):
        return {"n": int(state["n"]) - 1, "x": float(state["n"])}

    def summary(self, row):
        return f"x {row['x']:g}"


FILES = ("metrics.jsonl", "saves.jsonl")


def due(step):
    """The numbers of the rows before a checkpoint."""
    return [list(range(step)), list(range(1, step, 2))]


def tree(step):
    return {"a": np.arange(1000.0, dtype=np.float32) + step, "b": np.uint32(7)}


def files_of(path):
    """The files of rows that checkpoints count on."""
    return {path / name: most for name, most in zip(FILES, (2, 1), strict=True)}


def write(folder, checkpoints, step):
    folder.append_rows([{"n": n} for n in range(step - 2, step)], "metrics.jsonl")
    folder.append_rows([{"n": step - 1}], "saves.jsonl")
    checkpoints.save(step, tree(step))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "run"
    folder = RunFolder(path, {"toy": 1})
    with Checkpoints(path / "checkpoints", keep=3, files=files_of(path)) as checkpoints:
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
        Checkpoints(path / "checkpoints", keep=3, files=files_of(path)) as checkpoints,
    ):
        step, found = checkpoints.restore_latest(tree(0))
        if step:
            np.testing.assert_array_equal(found["a"], tree(step)["a"])
        for name, numbers in zip(FILES, due(step), strict=True):
            assert [row["n"] for row in folder.read_rows(name)] == numbers
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
