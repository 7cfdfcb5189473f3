"""How processes find one another."""

import contextlib
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import pytest

from edl_jax.errors import ConfigError, ProcessError
from edl_jax.runs import joining
from edl_jax.runs.joining import Processes, meet
from edl_jax.runs.processes import connect_devices
from tests.test_processes import ROOT, free_port


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
        (HERE, True, [(1, 2)], ["process 1 of 2, .*: something answers, .*another program"]),
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host:1"}, "expected all three or none"),
        (
            {"auto": True, "coordinator": "h:1", "num_processes": 2, "process_id": 0},
            "none with auto",
        ),
        (
            {"coordinator": "h:1", "num_processes": 2, "process_id": 2},
            "num_processes 2 and process_id 2; .* from 0 to num_processes - 1",
        ),
        ({"coordinator": "host", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"coordinator": "h:99999", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"coordinator": "h:0", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"timeout": 0}, "timeout is 0; expected a finite number, more than 0"),
    ],
)
def test_processes_that_cannot_meet_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Processes(**given)


ALONE = ["coordinator=127.0.0.1:1", "num-processes=2", "process-id=1", "timeout=0.5"]


@pytest.mark.slow
@pytest.mark.parametrize("given", [["auto"], ALONE], ids=["no cluster", "no first process"])
def test_where_others_are_not_found_the_command_says_so(given):
    command = [sys.executable, "-m", "edl_jax", "pretrain", *(f"--processes.{x}" for x in given)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "the processes did not meet" in result.stderr
    assert len(result.stderr.splitlines()) == 1
