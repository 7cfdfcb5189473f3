"""Several real processes on loopback."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from edl_jax import EvolvedLoss, exchange, joining, processes
from edl_jax.errors import ConfigError, ProcessError
from edl_jax.exchange import arrays_from_first, in_any, json_from
from edl_jax.joining import _SECONDS_TO_PART, Processes, meet
from edl_jax.processes import all_do, connect_devices, first_does

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


@contextlib.contextmanager
def one_of_two(monkeypatch, *, headers, bodies=()):
    """Be process 1, and get these bytes of process 0."""
    rows, bodies = iter(headers), iter(bodies)

    def rows_of_all(row):
        return np.stack([np.frombuffer(next(rows), np.uint8), row])

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(jax, "process_index", lambda: 1)
        for module in (exchange, processes):
            patch.setattr(module, "rows_of_all", rows_of_all)
        patch.setattr(exchange, "_summed", lambda row, is_source: next(bodies))
        yield


def header(body, length=None):
    return hashlib.sha256(body).digest() + (len(body) if length is None else length).to_bytes(8)


DONE, FAILED = bytes([1]), bytes([2])
LIKE = {"a": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    ("receive", "headers", "body"),
    [
        (lambda: json_from(0, None), [header(b"[1]")], b"[2]"),
        (lambda: json_from(0, None), [header(b"", length=2**62)], b""),
        (lambda: json_from(0, None), [header(b"cos\nsystem\n")], b"cos\nsystem\n"),
        (lambda: json_from(0, None), [header(b"[" * 9**5)], b"[" * 9**5),
        (lambda: json_from(0, None), [header(b"\xff")], b"\xff"),
        (lambda: arrays_from_first(None, LIKE), [header(b"x" * 13)], b"x" * 13),
        (lambda: arrays_from_first(None, LIKE), [header(b"x" * 12)], b"y" * 12),
        (lambda: all_do(list), [FAILED, header(b'["SystemExit", "x"]')], b'["SystemExit", "x"]'),
        (lambda: all_do(list), [FAILED, header(b'["DataError", 1]')], b'["DataError", 1]'),
        (lambda: first_does(list), [DONE, header(b"{")], b"{"),
    ],
)
def test_bytes_that_are_not_what_was_expected_are_refused(monkeypatch, receive, headers, body):
    with (
        one_of_two(monkeypatch, headers=headers, bodies=[body]),
        pytest.raises(ProcessError, match="which none of ours does: another program takes part"),
    ):
        receive()


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([["cpu"], ["cpu"] * 3], "1 x cpu in process 0; 3 x cpu in process 1"),
        ([["H100"], ["A100"]], "1 x H100 in process 0; 1 x A100 in process 1"),
        ([["A", "A"], ["A", "B"]], "2 x A in process 0; 1 x A, 1 x B in process 1"),
    ],
)
def test_processes_with_different_devices_are_refused(monkeypatch, kinds, message):
    devices = [
        SimpleNamespace(process_index=index, device_kind=kind)
        for index, mine in enumerate(kinds)
        for kind in mine
    ]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(ProcessError, match=f"have different devices: {message}"):
        connect_devices()


class Foreign(socketserver.BaseRequestHandler):
    """A program that is none of ours."""

    def handle(self):
        self.request.sendall(b"SSH-2.0-other\r\n")


HERE = "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "taken", "those", "messages"),
    [
        (HERE, False, [(1, 2)], ["process 1 of 2, .*: process 0 cannot be reached"]),
        (HERE, False, [(0, 3), (2, 3)], [r"process 1 of 3 did not come to 127.0.0.1:\d+ in"] * 2),
        ("no-such-host.invalid", False, [(1, 2)], ["cannot be reached: .*not known"]),
        ("192.0.2.1", False, [(0, 2)], ["process 0 of 2, .* cannot listen there"]),
        (HERE, True, [(0, 2)], ["process 0 of 2, .* cannot listen there .*in use"]),
        (HERE, True, [(1, 2)], ["process 1 of 2, .*: something answers .*another program"]),
        (HERE, False, [(0, 3), (1, 3), (1, 3)], ["two processes came with the index 1"] * 3),
        (
            HERE,
            False,
            [(0, 3), (1, 2)],
            ["process 1 came and expects 2 processes, process 0 3"] * 2,
        ),
    ],
    ids=lambda x: "" if isinstance(x, list) else str(x),
)
def test_processes_that_do_not_meet_say_why_in_time(monkeypatch, host, taken, those, messages):
    monkeypatch.setattr(joining, "_SECONDS_BETWEEN_TRIES", 0.02)
    port = free_port()
    address = f"{host}:{port}"

    def come(which):
        index, count = which
        with pytest.raises(ProcessError) as raised:
            meet(address, count, index, seconds=1.0, bind=address)
        return str(raised.value)

    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if taken:
            other = stack.enter_context(socketserver.TCPServer((HERE, port), Foreign))
            threading.Thread(target=other.serve_forever, daemon=True).start()
            stack.callback(other.shutdown)
        pool = stack.enter_context(ThreadPoolExecutor(len(those)))
        for which, message, told in zip(those, messages, pool.map(come, those), strict=True):
            assert f"process {which[0]} of {which[1]}, coordinator {address}" in told
            assert re.search(message, told), told
    assert time.monotonic() - began < 20


def test_processes_meet_whatever_else_calls_and_whenever_they_come():
    port = free_port()

    def come(index):
        time.sleep(0.1 * index)
        if index == 3:  # no process: it says nothing, then something else
            with socket.create_connection((HERE, port)) as other:
                time.sleep(0.2)
                other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return
        meet(f"{HERE}:{port}", 3, {0: 1, 2: 0, 4: 2}[index], seconds=30, bind=f"{HERE}:{port}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come, [0, 2, 3, 4]))


def test_the_first_that_a_cluster_names_is_waited_for(monkeypatch):
    """As in a SLURM job whose other processes never start; JAX itself would abort."""
    job = {
        "JOB_ID": "7",
        "STEP_NODELIST": "localhost",
        "NTASKS": "2",
        "PROCID": "1",
        "LOCALID": "0",
    }
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ProcessError, match=r"process 1 of 2, coordinator localhost:\d+, timeout"):
        Processes(auto=True, timeout=0.5).join()


def test_alone_a_process_agrees_with_itself():
    assert first_does(lambda: {"a": 1}) == {"a": 1}
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
        ({"coordinator": "host", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"coordinator": "h:99999", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"coordinator": "h:0", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"timeout": 0}, "timeout is 0; expected a finite number, more than 0"),
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
