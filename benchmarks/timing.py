"""Time contestants in turns: first calls apart, then rounds in which each has its go.

A turn is a pause, an untimed run and a timed one, so that what is timed is the steady state.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import Run

Row = dict[str, Any]
SETTLE_SECONDS = 0.15  # pause before each timed repeat
SETTLE_RUN_SECONDS = 1.0  # runs that take longer than this go without an untimed one


class Limits(NamedTuple):
    """How much may be spent.

    Attributes:
      repeats: most repeats of a subject.
      cell_seconds: longest that one repeat, and about all repeats of a subject, may take.
      memory_bytes: most that a subject may need, by its estimate.
      repeat_seconds: shortest repeat; faster subjects run several times in one.
    """

    repeats: int
    cell_seconds: float
    memory_bytes: float
    repeat_seconds: float = 0.02


class Subject(NamedTuple):
    """Something to time.

    Attributes:
      name: its name.
      prepare: sets up, and returns what is timed.
      unit: items, such as generations, that one run gives.
      peak_bytes: memory it needs, by estimate.
      predicted_seconds: of one run, from smaller sizes; None if unknown.
    """

    name: str
    prepare: Callable[[], Run]
    unit: int = 1
    peak_bytes: int = 0
    predicted_seconds: float | None = None


@dataclasses.dataclass
class _Going:
    subject: Subject
    run: Run
    count: int
    repeats: int
    start_seconds: float
    once: float  # seconds of the second run
    samples: list[float]  # seconds of one run


def measure(subjects: list[Subject], limits: Limits) -> dict[str, Row]:
    """Seconds of one item of each subject, the subjects taking turns.

    Returns:
      By name, `{"status": "ok", "compile_s", "seconds", "median_s", "q1_s", "q3_s"}`, or only a
      status that says why there is no number. `compile_s` is the time from nothing to the first
      result, less one steady run: setting up and compiling.
    """
    rows: dict[str, Row] = {}
    going: list[_Going] = []
    for subject in subjects:
        started = _start(subject, limits)
        if isinstance(started, str):
            rows[subject.name] = {"status": started}
            print(f"  {subject.name}: {started}", flush=True)
        else:
            going.append(started)
    for turn in range(max((one.repeats for one in going), default=0)):
        first = turn % len(going)
        for one in (*going[first:], *going[:first]):  # nobody always follows the same other
            if len(one.samples) < one.repeats:
                _settle(one)
                one.samples.append(_seconds(one.run, one.count) / one.count)
    for one in going:
        rows[one.subject.name] = row = _row(one)
        print(
            f"  {one.subject.name}: {1e3 * row['median_s']:.3g} ms, quartiles "
            f"{1e3 * row['q1_s']:.3g} to {1e3 * row['q3_s']:.3g}, {len(row['seconds'])} repeats, "
            f"compile {row['compile_s']:.2g} s",
            flush=True,
        )
    del going
    gc.collect()
    return {subject.name: rows[subject.name] for subject in subjects}


def _start(subject: Subject, limits: Limits) -> _Going | str:
    predicted = subject.predicted_seconds
    if subject.peak_bytes > limits.memory_bytes:
        return (
            f"out of memory by estimate ({subject.peak_bytes / 2**30:.1f} GiB of "
            f"{limits.memory_bytes / 2**30:.1f})"
        )
    if predicted is not None and predicted > limits.cell_seconds:
        return f"skipped (one run would take about {predicted:.0f} s)"
    try:
        begin = time.perf_counter()
        run = subject.prepare()
        run(1)
        start_seconds = time.perf_counter() - begin
        once = _seconds(run, 1)
    except Exception as error:
        # A peer that fails is a result to state, not a reason to lose the others.
        message = str(error).strip().splitlines() or [""]
        return f"failed ({type(error).__name__}: {message[0][:120]})"
    if once > limits.cell_seconds:
        return f"skipped (one run took {once:.0f} s)"
    count = max(1, round(limits.repeat_seconds / once))
    repeats = max(1, min(limits.repeats, int(limits.cell_seconds / (once * count))))
    samples = [once] if repeats == 1 else []
    return _Going(subject, run, count, repeats, start_seconds, once, samples)


def _settle(one: _Going) -> None:
    """Let the last one's threads go to sleep, and the caches fill with what is needed now.

    OpenBLAS and OpenMP keep their threads spinning for a while after a product; without the pause
    whoever came next took up to twice as long, and without the untimed run a tenth longer.
    """
    time.sleep(SETTLE_SECONDS)
    if one.once < SETTLE_RUN_SECONDS:
        one.run(1)


def _seconds(run: Run, count: int) -> float:
    begin = time.perf_counter()
    run(count)
    return time.perf_counter() - begin


def _row(one: _Going) -> Row:
    items = [seconds / one.subject.unit for seconds in one.samples]
    low, median, high = np.percentile(items, [25, 50, 75])
    return {
        "status": "ok",
        "compile_s": max(0.0, one.start_seconds - float(np.median(one.samples))),
        "seconds": items,
        "median_s": float(median),
        "q1_s": float(low),
        "q3_s": float(high),
    }
