"""Run folders: their names, and rows and files in them that are damaged or cannot be read."""

import dataclasses
import errno
import re
from pathlib import Path

import pytest

from edl_jax.errors import RunFolderError
from edl_jax.runs.folder import RunFolder, default_run_dir


def test_runs_begun_together_have_folders_of_their_own():
    one, other = default_run_dir("train"), default_run_dir("train")
    assert one != other
    assert re.fullmatch(r"train-\d{8}-\d{6}-\d{6}", one.name)


@dataclasses.dataclass(frozen=True)
class Inner:
    old: int = 1
    new: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    size: int = 2


def test_a_field_that_a_run_did_not_have_is_at_its_default_there(tmp_path):
    RunFolder(tmp_path, {"toy": {"inner": {"old": 5}}, "data": "x"})
    RunFolder(tmp_path, {"toy": Outer(Inner(old=5)), "data": "x"})
    for other, message in (
        (Outer(Inner(old=5, new=0.1)), r"toy.inner.new is 0.0 there and 0.1 here"),
        (Outer(Inner()), "toy.inner.old is 5 there and 1 here"),
        (Outer(Inner(old=5), size=3), "toy.size is 2 there and 3 here"),
    ):
        with pytest.raises(RunFolderError, match=message):
            RunFolder(tmp_path, {"toy": other, "data": "x"})
    with pytest.raises(RunFolderError, match="parts is None there and 'y' here"):
        RunFolder(tmp_path, {"toy": Outer(Inner(old=5)), "data": "x", "parts": "y"})


@pytest.mark.parametrize("kept", ["checkpoints/2", "metrics.jsonl"])
def test_what_a_run_left_without_its_configuration_is_no_other_runs(tmp_path, kept):
    RunFolder(tmp_path, {"seed": 0})
    (tmp_path / kept).mkdir(parents=True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RunFolderError, match="of a run, but not its config"):
        RunFolder(tmp_path, {"seed": 1})
    (tmp_path / kept).rmdir()
    RunFolder(tmp_path, {"seed": 1})


def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.append_rows([{"n": n} for n in range(4)])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # cut short by a kill
    assert folder.read_rows() == [{"n": 0}, {"n": 1}, {"n": 2}]
    for damage in (b'{"n": ', b"\xff\xff", b"3"):
        damaged = whole.replace(b'{"n": 1}', damage)
        path.write_bytes(damaged)
        for read in (folder.read_rows, folder.resume_rows):
            with pytest.raises(RunFolderError, match=r"line 2 of 4 of .*metrics\.jsonl is damaged"):
                read()
        assert path.read_bytes() == damaged
    path.write_bytes(whole.replace(b'{"n": 1}\n', b""))  # as the message says
    assert folder.resume_rows() == [{"n": 0}, {"n": 2}, {"n": 3}]


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})
    folder.append_rows([{"n": 0}])

    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        for read in (lambda: RunFolder(tmp_path, {}), folder.read_rows, folder.resume_rows):
            with pytest.raises(RunFolderError, match=r"cannot be read .*Too many.*left as it is"):
                read()
    assert folder.read_rows() == [{"n": 0}]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"config\.json is damaged .*remove the run folder"):
        RunFolder(tmp_path, {})
