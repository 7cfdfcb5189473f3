"""Rows that are missing, or there twice, are noticed by training and pretraining alike."""

import pytest

from edl_jax.errors import RunFolderError
from edl_jax.evolution import loop as evolution_loop
from edl_jax.evolution.loop import HELD_OUT_FILE
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.folder import RunFolder
from edl_jax.training import loop as training_loop
from tests.toy_runs import tree


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
