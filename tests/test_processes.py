"""Several real processes on loopback."""

import json
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
from edl_jax.runs.joining import _SECONDS_TO_PART

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
    tmp_path,
    run_dir,
    *more,
    index=0,
    count=1,
    port=None,
    generations=20,
    per_chunk=10,
    plotting=0,
):
    """Start `edl pretrain` as one process of `count`."""
    config = tmp_path / "tiny.py"
    config.write_text(
        CONFIG.format(generations=generations, per_chunk=per_chunk, plotting=plotting)
    )
    command = [sys.executable, "-m", "edl_jax", "pretrain", "--config", str(config), "--quiet"]
    command += ["--run-dir", str(run_dir), *more]
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
    # One process alone resumes from the checkpoint.
    resumed = start(tmp_path, tmp_path / "run0", **settings)
    wait_for_rows(tmp_path / "run0" / "metrics.jsonl", 40, [resumed])
    resumed.kill()
    finish(resumed)


def test_processes_that_are_told_different_things_end_alike_with_one_line(tmp_path):
    port = free_port()
    given = [["--severity", "surprisal"], ["--severity", "brier", "--seed", "1"]]
    told = [
        start(tmp_path, tmp_path / f"run{index}", *more, index=index, count=2, port=port)
        for index, more in enumerate(given)
    ]
    for status, _, err in map(finish, told):
        assert status == 2, err
        (line,) = err.splitlines()
        assert line.startswith("edl pretrain: the processes were not started alike: key is")
        assert "pretrain.severity is 'surprisal' in process 0 and 'brier' in process 1" in line
    assert not (tmp_path / "run0").exists()


def test_two_processes_hear_what_the_first_sends_and_refuse_what_differs():
    coordinator = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", coordinator, str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    found = []
    for status, out, err in map(finish, both):
        assert status == 0, err
        found.append(json.loads(out.rpartition("found:")[2]))
    alike = {
        "sums": [4, True],
        "new_sockets": 0,  # all devices are connected by joining: later on one may be late
        "elsewhere": False,  # the coordinator listens at its own address only
        "json": [7, "nan", None, 3000],
        "arrays": True,
        "slow": [0, "slow"],
        "refused": "RunFolderError: no room",
        "second": "DataError: no file",
        "alike": None,
        "no_git": None,
    }
    apart = {
        "unshared": [[0, "slow"], None],
        "odd": ["Odd: strange", "DataError: strange"],
        "bug": ["itself: a bug", "ProcessError: process 0 failed (TypeError: a bug)."],
        "all": [0, 1],
    }
    refused = {
        "pretrain": ["generations is 5", "and 7", "severity is 'surprisal'", "and 'brier'"],
        "key": ["alike: key is [0, 0] in process 0 and [0, 1] in process 1. Start"],
        "train": ["label_noise is 'none'", "loss is 'edl'", "noise_rate is 0.0", "seed is 0"],
        "loss": ["alike: loss is"],  # where the data lies may differ
        "seeds": ["alike: seeds is [0, 1] in process 0 and [0, 2] in process 1. Start"],
        "many": ["44 more"],
        "commit": [f"commit is '{'0' * 40}' in process 0 and '{'1' * 40}' in process 1"],
    }
    for index, told in enumerate(found):
        assert {name: told[name] for name in alike} == alike
        assert {name: told[name] for name in apart} == {name: x[index] for name, x in apart.items()}
        for name, words in refused.items():
            assert told[name].startswith("ProcessError: the processes were not started alike")
            assert all(word in told[name] for word in words), told[name]
            assert len(told[name]) < 2000
