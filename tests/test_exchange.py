"""What one process takes from another."""

import contextlib

import jax
import numpy as np
import pytest

from edl_jax.errors import ProcessError
from edl_jax.runs import processes
from edl_jax.runs.processes import all_do, first_does, in_any, json_of_all


@contextlib.contextmanager
def one_of_two(monkeypatch, *received):
    """Be process 1, and get these arrays of process 0."""
    received = iter(received)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(processes, "of_all", lambda mine: np.stack([next(received), mine]))
        yield


def sent(data):
    """What `json_of_all` receives of a process that sends these bytes."""
    row = np.zeros(max(4096, 1 << (len(data) - 1).bit_length()), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    return np.array(len(data)), row


DONE = sent(b"null")


@pytest.mark.parametrize("data", [b"cos\nsystem\n", b"[" * 9**5, b"\xff", b"{", b""], ids=len)
def test_what_is_not_json_is_refused(monkeypatch, data):
    refused = pytest.raises(ProcessError, match="sent no JSON: another program takes part")
    with one_of_two(monkeypatch, *sent(data)), refused:
        json_of_all(None)
    with one_of_two(monkeypatch, *DONE, *sent(data)), refused:
        first_does(list)


def test_an_error_of_no_known_kind_is_raised_as_one_of_ours(monkeypatch):
    told = sent(b'["SystemExit", "x"]')
    with one_of_two(monkeypatch, *told), pytest.raises(ProcessError, match=r"^x$"):
        all_do(list)


def test_alone_a_process_agrees_with_itself():
    assert first_does(lambda: {"a": 1}) == {"a": 1}
    assert in_any(True)
    assert not in_any(False)
