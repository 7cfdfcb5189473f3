"""Rows that are missing, or there twice, are noticed by training and pretraining alike."""

from types import SimpleNamespace

import pytest

from edl_jax import PretrainConfig, TrainConfig
from edl_jax.errors import RunFolderError
from edl_jax.evolution.loop import HELD_OUT_FILE, EvolutionRun
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.fit import resume
from edl_jax.runs.folder import RunFolder
from edl_jax.training.loop import TrainingRun
from tests.toy_runs import tree

TRAINING = TrainingRun(TrainConfig(epochs=3), SimpleNamespace(steps_per_epoch=4, mesh=None), seed=0)


def taken_up(run, path):
    with Checkpoints(path / "checkpoints", keep=3) as checkpoints:
        step, _, rows = resume(RunFolder(path, {}), checkpoints, tree(0), run.logs, run.period)
    return step, *rows


def train_rows(path, step):
    """As a training of four steps an epoch takes it up."""
    found, rows = taken_up(TRAINING, path)
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
    config = PretrainConfig(generations=13, generations_per_chunk=5)
    evolution = SimpleNamespace(candidates=lambda state: state)
    run = EvolutionRun(config, evolution, device_mesh("pop"), None, None)
    folder = RunFolder(tmp_path, {})
    folder.append_rows({"generation": n} for n in range(max([*saved, 5])))
    folder.append_rows(({"generation": n} for n in chunks), HELD_OUT_FILE)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for each in saved:
            checkpoints.save(each, tree(each), score=0.0)
    if step is None:
        with pytest.raises(RunFolderError, match=r"but held_out of \d gen|no checkpoint"):
            taken_up(run, tmp_path)
        return
    first, rows, held_out = taken_up(run, tmp_path)
    assert first == step
    assert [row["generation"] for row in rows] == list(range(step))
    assert [row["generation"] for row in held_out] == [n for n in chunks if n < step]
