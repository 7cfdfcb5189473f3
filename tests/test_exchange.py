"""What one process takes from another."""

import contextlib
import hashlib

import jax
import numpy as np
import pytest

from edl_jax.errors import ProcessError
from edl_jax.runs import exchange, processes
from edl_jax.runs.exchange import arrays_from_first, in_any, json_from
from edl_jax.runs.processes import all_do, first_does


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


def test_alone_a_process_agrees_with_itself():
    assert first_does(lambda: {"a": 1}) == {"a": 1}
    assert in_any(True)
    assert not in_any(False)
