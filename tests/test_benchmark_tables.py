import argparse
import json
import time

import numpy as np
import pytest

from benchmarks.report import Part, run, table
from benchmarks.timing import LATE, Subject, measure, ratio_interval

pytestmark = pytest.mark.slow


def test_subjects_take_turns_and_what_fails_is_said():
    turns = []

    def fails():
        raise ValueError("no luck\nat all")

    def runs(name, seconds):
        return lambda count: (turns.append(name), time.sleep(seconds * count))

    subjects = [
        Subject("fine", lambda: runs("fine", 0.05), unit=5),
        Subject("broken", fails),
        Subject("slow", lambda: runs("slow", 0.2)),
    ]
    fine, broken, slow = measure(subjects, 4, seconds=0.5)
    assert turns[:4] == ["fine", "fine", "slow", "slow"]  # first calls
    assert turns[4:12] == ["fine", "fine", "slow", "slow", "slow", "slow", "fine", "fine"]
    assert len(fine["seconds"]) == 4
    assert len(slow["seconds"]) == 2
    assert 0.01 <= fine["q1_s"] <= fine["median_s"] <= fine["q3_s"]
    assert broken["status"] == "failed (ValueError: no luck)"


def test_ratios_of_turns_leave_out_what_slows_both():
    rng = np.random.default_rng(1)
    drift = np.repeat([1.0, 3.0], 20)
    below = drift * rng.uniform(0.99, 1.01, 40)
    ratio, low, high = ratio_interval(list(1.2 * below), list(below))
    assert ratio == pytest.approx(low) == pytest.approx(high) == pytest.approx(1.2)
    noisy = 1.2 * rng.uniform(0.9, 1.1, 40)
    ratio, low, high = ratio_interval(list(noisy), list(below[:20]))
    assert low < ratio < high
    assert ratio == pytest.approx(np.median(noisy[:20]) / np.median(below[:20]))


def fake(*seconds):
    """Runs that take so long each, as if timed."""
    return {"status": "ok", "seconds": seconds, "median_s": np.median(seconds), "compile_s": 1.0}


def test_what_is_slower_is_said(tmp_path):
    taken = {"edl_jax": (1.0, 1.1, 1.2), "loser": (2.0, 2.1, 2.2), "winner": (0.5, 0.6, 0.7)}
    taken["like"] = (1.3, 1.0, 1.1)
    rows = [{"name": name, "q1_s": 1, "q3_s": 1, **fake(*x)} for name, x in taken.items()]
    lines = table(Part("title", (), "edl_jax"), rows).splitlines()
    assert lines[0].split(" | ")[-2] == "verdict"
    found = {line.split(" | ")[0][2:]: line.split(" | ")[-2] for line in lines[2:]}
    like = "no significant difference"
    assert found == {"edl_jax": "—", "loser": "slower", "winner": "faster", "like": like}


def sleeper(name, seconds):
    return Subject(name, lambda: lambda count: time.sleep(seconds * count))


def test_what_is_done_is_on_the_disk_before_the_next_part(tmp_path):
    seen, arguments = [], argparse.Namespace(out=tmp_path, quick=False, repeats=2)

    def looks():
        seen.append(json.loads((tmp_path / "x.json").read_text()))
        raise MemoryError("all of it\nand more")

    both = [sleeper("edl", 0.02), sleeper("other", 0.2)]
    parts = [
        Part("one", both, "edl", goal=2.0),
        Part("two", [Subject("looks", looks), both[0]], "edl", goal=2.0),
        Part("three", both, "edl", needs=1000.0),
        Part("four", both, "edl", goal=100.0),
    ]
    run("x", parts, ("# Heading", "The end."), arguments, budget=100.0)
    (cut,), done = seen, json.loads((tmp_path / "x.json").read_text())
    results = [result for *_, result in cut["parts"].values()]
    assert results == ["measured; goal 2: met", "under way, or cut short", *["not begun"] * 2]
    assert [row["part"] for row in cut["rows"]] == ["one", "one"]
    results = [result for *_, result in done["parts"].values()]
    assert results[::3] == ["measured; goal 2: met", "measured; goal 100: not met"]
    assert results[1] == "not measured: looks"
    assert results[2].startswith("skipped: ")
    assert "failed (MemoryError: all of it)" in (tmp_path / "x.md").read_text()


def test_no_turn_begins_when_the_time_is_over():
    calls = []

    def breaks(count):
        calls.append(count)
        if len(calls) > 4:
            raise RuntimeError("tired")

    late = measure([Subject("late", lambda: calls.append)], 3, deadline=time.monotonic() - 1)
    assert late == [{"name": "late", "status": LATE}]
    assert calls == []
    subjects = [sleeper("long", 0.2), Subject("broken", lambda: breaks)]
    long, broken = measure(subjects, 100, deadline=time.monotonic() + 2)
    assert 1 <= len(long["seconds"]) < 6
    assert broken["status"] == "failed (RuntimeError: tired)"
