"""Two writers of one folder: the second is refused at once, and told who the first is."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edl_jax import cli, pretrain, train
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.folder import RunFolder, locked, open_run
from edl_jax.studies import (
    CardConfig,
    CoverageConfig,
    DemoConfig,
    ablate,
    card,
    compare,
    coverage,
    demo,
)
from tests.test_ablate import SMALL
from tests.test_compare import PLAIN
from tests.test_evolution import TINY
from tests.test_train_runs import CONFIG

ROOT = Path(__file__).parents[1]
ME = rf"is in use by process {os.getpid()} on {socket.gethostname()} since \d{{4}}-.*choose another"
HOLD = """
import sys, time
from edl_jax.runs.folder import locked
from pathlib import Path
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
RUNS = {
    "pretrain": lambda path: pretrain(TINY, run_dir=path),
    "train": lambda path: train(CONFIG, run_dir=path),
    "compare": lambda path: compare(PLAIN, run_dir=path),
    "ablate": lambda path: ablate(SMALL, run_dir=path),
    "coverage": lambda path: coverage(CoverageConfig(train=CONFIG_OF_COVERAGE), run_dir=path),
    "card": lambda path: card(CardConfig("cross_entropy"), run_dir=path),
    "page": lambda path: cli._tell("A run", {}, {}, path),
    "demo": lambda path: demo(DemoConfig(), path),
}
CONFIG_OF_COVERAGE = dataclasses.replace(CONFIG, epochs=6, augmentation=type(CONFIG.augmentation)())


@pytest.mark.parametrize("run", RUNS)
def test_whatever_runs_in_a_folder_that_is_in_use_is_refused(tmp_path, run):
    with locked(tmp_path), pytest.raises(RunFolderError, match=ME):
        RUNS[run](tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == [".lock"]


def test_a_second_run_in_another_thread_is_refused(tmp_path):
    told = []

    def second():
        with pytest.raises(RunFolderError, match=ME) as error, open_run(tmp_path, {}):
            pass
        told.append(error)

    with open_run(tmp_path, {}):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, number):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        told = rf"in use by process {first.pid} on {socket.gethostname()}"
        with pytest.raises(RunFolderError, match=told), open_run(tmp_path, {}):
            pass
        first.send_signal(number)
    with open_run(tmp_path, {}):
        pass


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, RunFolderError])
def test_the_lock_is_given_back_on_every_way_out(tmp_path, error):
    try:
        with open_run(tmp_path, {}):
            if error is not None:
                raise error("out")
    except (ValueError, KeyboardInterrupt, RunFolderError):
        pass
    with open_run(tmp_path, {}):
        pass
    with pytest.raises(RunFolderError, match="another configuration"), open_run(tmp_path, {"a": 1}):
        pass
    with open_run(tmp_path, {}):
        RunFolder(tmp_path, {}).read_rows()  # to look is always allowed


def test_a_path_is_taken_as_users_give_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_run("~/run", {}) as folder:
        assert folder.path == tmp_path / "run"
    (tmp_path / "run" / "link").symlink_to(tmp_path / "gone")
    for path, error, match in [
        ("", ConfigError, "the path is ''"),
        (b"run", ConfigError, "the path is b'run'"),
        (tmp_path / "\udcff", ConfigError, "the path is .*expected .* in UTF-8"),
        (tmp_path / ("x" * 300), RunFolderError, "cannot be written or locked .*too long"),
        (tmp_path / "run" / "config.json", RunFolderError, "cannot be written"),
        (tmp_path / "run" / "link", RunFolderError, r"cannot be written.*run/link"),
        (tmp_path / "run" / "link" / "x", RunFolderError, r"cannot be written.*run/link"),
    ]:
        with pytest.raises(error, match=match):
            pretrain(TINY, run_dir=path)
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_run_left_and_cannot_be_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / ".metrics.jsonl.x.edl-tmp").touch()

    def refuse(path):
        raise PermissionError(f"not allowed: {path.name}")

    monkeypatch.setattr(Path, "unlink", refuse)
    said = r"left in .* cannot be removed \(not allowed: \.metrics\.jsonl\.x\.edl-tmp\)\. Remove"
    with pytest.raises(RunFolderError, match=said), open_run(tmp_path, {}):
        pass


def test_a_run_folder_within_another_is_left_to_its_own_run(tmp_path):
    with open_run(tmp_path / "inner", {}):
        (tmp_path / "checkpoints").mkdir()
        lefts = [tmp_path / name / ".x.edl-tmp" for name in ("inner", "checkpoints", ".")]
        for left in lefts:
            left.touch()
        with open_run(tmp_path, {}):
            assert [left.exists() for left in lefts] == [True, False, False]
    with open_run(tmp_path / "inner", {}):
        assert not lefts[0].exists()
