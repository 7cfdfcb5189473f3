"""Several real processes on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from edl_jax import EvolvedLoss
from edl_jax.errors import ConfigError
from edl_jax.processes import _SECONDS_TO_PART, Processes, from_first, in_any

ROOT = Path(__file__).parents[1]
CONFIG = """
import dataclasses, time
from edl_jax import cli
from tests.test_evolution import TINY

def draw(*arguments, plot=cli.plot_loss, **options):
    time.sleep({plotting})
    return plot(*arguments, **options)

cli.plot_loss = draw

def get_config():
    return dataclasses.replace(TINY, generations={generations}, generations_per_chunk={per_chunk})
"""


def start(
    tmp_path, run_dir, *, index=0, count=1, port=None, generations=20, per_chunk=10, plotting=0
):
    """Start `edl pretrain` as one process of `count`."""
    config = tmp_path / "tiny.py"
    config.write_text(
        CONFIG.format(generations=generations, per_chunk=per_chunk, plotting=plotting)
    )
    command = [sys.executable, "-m", "edl_jax", "pretrain", "--config", str(config), "--quiet"]
    command += ["--run-dir", str(run_dir)]
    if count > 1:
        command += ["--processes.coordinator", f"127.0.0.1:{port}"]
        command += ["--processes.num-processes", str(count), "--processes.process-id", str(index)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(tmp_path, **settings):
    port = free_port()
    return [
        start(tmp_path, tmp_path / f"run{index}", index=index, count=2, port=port, **settings)
        for index in (0, 1)
    ]


def finish(process, seconds=480):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for_rows(path, count, processes, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not reach {count} rows")


def params_of(run_dir):
    leaves = jax.tree.leaves(EvolvedLoss.load(run_dir / "loss.safetensors").params)
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def test_two_processes_reach_what_one_reaches_bit_for_bit(tmp_path):
    # The first has more to do in the end than the others wait when they part.
    for process in start_two(tmp_path, plotting=_SECONDS_TO_PART + 1):
        status, _, err = finish(process)
        assert status == 0, err
    assert (tmp_path / "run0" / "loss.png").exists()
    status, _, err = finish(start(tmp_path, tmp_path / "alone"))
    assert status == 0, err
    np.testing.assert_array_equal(params_of(tmp_path / "run0"), params_of(tmp_path / "alone"))
    assert not (tmp_path / "run1").exists()  # the first process alone writes


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_an_error_and_a_checkpoint(tmp_path, victim):
    settings = {"generations": 4000, "per_chunk": 10}
    processes = start_two(tmp_path, **settings)
    wait_for_rows(tmp_path / "run0" / "metrics.jsonl", 20, processes)
    os.kill(processes[victim].pid, signal.SIGKILL)
    status, _, err = finish(processes[1 - victim], seconds=90)
    finish(processes[victim])
    # Where the first process dies, with the service that joined them, JAX may be faster to say so.
    assert status == 2 or (victim == 0 and status != 0), err
    told = "a process of the run is gone" in err
    assert told or (victim == 0 and "another task died" in err), err
    # One process alone goes on from the checkpoint.
    resumed = start(tmp_path, tmp_path / "run0", **settings)
    wait_for_rows(tmp_path / "run0" / "metrics.jsonl", 40, [resumed])
    resumed.kill()
    finish(resumed)


def test_alone_a_process_agrees_with_itself():
    assert from_first({"a": 1}) == {"a": 1}
    assert in_any(True)
    assert not in_any(False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host:1"}, "expected all three or none"),
        (
            {"auto": True, "coordinator": "h:1", "num_processes": 2, "process_id": 0},
            "none with auto",
        ),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "expected 0 to 1"),
    ],
)
def test_processes_that_cannot_meet_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Processes(**given)


def test_where_no_cluster_is_found_the_command_says_so(tmp_path):
    command = [sys.executable, "-m", "edl_jax", "pretrain", "--processes.auto"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "the processes did not meet" in result.stderr
    assert len(result.stderr.splitlines()) == 1
