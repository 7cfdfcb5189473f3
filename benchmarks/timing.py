"""Time subjects in turns: first calls apart, then rounds in which each has its go.

A turn is a pause, an untimed run and a timed one, so that what is timed is the steady state.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

# Runs something so many times, waits for all of it, and returns the last result.
Run = Callable[[int], Any]
Row = dict[str, Any]
SETTLE_SECONDS = 0.15  # pause before each timed run on a CPU
LONG_SECONDS = 1.0  # runs that take longer than this go without an untimed one
LEAST_SECONDS = 0.02  # faster subjects run several times in one turn
LATE = "skipped: no time was left"


class Subject(NamedTuple):
    """Something to time: `prepare` sets it up and returns what is timed."""

    name: str
    prepare: Callable[[], Run]
    unit: int = 1  # items, such as generations, that one run gives


class _Started:
    """A subject that has run twice: once from nothing, and once more."""

    def __init__(self, subject: Subject):
        begin = time.perf_counter()
        self.subject, self.run = subject, subject.prepare()
        self.run(1)
        self.first_seconds = time.perf_counter() - begin
        self.once, self.samples = _seconds(self.run, 1), list[float]()  # seconds of one run

    def take_turn(self) -> None:
        """Let the last one's threads go to sleep, and the caches fill; then time a run.

        OpenBLAS and OpenMP keep their threads spinning for a while after a product; without the
        pause whoever came next took up to twice as long, and without the untimed run a tenth
        longer.
        """
        time.sleep(SETTLE_SECONDS if jax.default_backend() == "cpu" else 0)
        if self.once < LONG_SECONDS:
            self.run(1)
        count = max(1, round(LEAST_SECONDS / self.once))
        self.samples.append(_seconds(self.run, count) / count)


@contextlib.contextmanager
def _failure_told(row: Row) -> Iterator[None]:
    """A subject that fails is a result to state, not a reason to lose the others."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip().splitlines() or [""])[0][:120]
        row["status"] = f"failed ({type(error).__name__}: {message})"
        print(f"  {row['name']}: {row['status']}", flush=True)


def measure(
    subjects: Sequence[Subject], repeats: int, seconds: float = 20.0, deadline: float = math.inf
) -> list[Row]:
    """Seconds of one item of each subject, the subjects taking so many turns.

    Where one is so slow that they would take longer than `seconds`, it has fewer. From `deadline`
    on, a time of `time.monotonic`, none is set up and none has another turn.

    Returns:
      For each subject `{"name", "status": "ok", "compile_s", "seconds", "median_s", "q1_s",
      "q3_s"}`, or only a status that says how it failed. `compile_s` is the time from nothing to
      the first result, less one steady run: setting up and compiling.
    """
    rows: dict[str, Row] = {x.name: {"name": x.name, "status": LATE} for x in subjects}
    going: list[_Started] = []
    for subject in subjects:
        with _failure_told(rows[subject.name]):
            if time.monotonic() < deadline:
                going.append(_Started(subject))
    for turn in range(repeats):
        first = turn % max(1, len(going))
        for one in (*going[first:], *going[:first]):  # nobody always follows the same other
            if time.monotonic() >= deadline or (turn and sum(one.samples) + one.once > seconds):
                continue
            with _failure_told(rows[one.subject.name]):
                one.take_turn()
        going = [one for one in going if rows[one.subject.name]["status"] == LATE]
    for one in going:
        row = rows[one.subject.name]
        if one.samples:
            items = [seconds / one.subject.unit for seconds in one.samples]
            compile_s = max(0.0, one.first_seconds - float(np.median(one.samples)))
            row |= {"status": "ok", "compile_s": compile_s, **spread(items)}
            print(
                f"  {row['name']}: {1e3 * row['median_s']:.3g} ms, quartiles "
                f"{1e3 * row['q1_s']:.3g} to {1e3 * row['q3_s']:.3g}, {len(items)} repeats, "
                f"compile {compile_s:.2g} s",
                flush=True,
            )
    del going
    gc.collect()
    jax.clear_caches()  # or later compile times would depend on what came before
    return list(rows.values())


def ratio_interval(
    above: Sequence[float], below: Sequence[float], *, resamples: int = 4000
) -> tuple[float, float, float]:
    """Ratio of the medians of two that took turns, and its 95 % interval by bootstrap.

    Turns are drawn anew as a whole, so that what slows both down for a while is not taken for a
    difference.
    """
    turns = min(len(above), len(below))
    pair = np.asarray([above[:turns], below[:turns]])
    drawn = np.random.default_rng(0).integers(turns, size=(resamples, turns))
    ratios = np.divide(*np.median(pair[:, drawn], axis=2))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.divide(*np.median(pair, axis=1))), float(low), float(high)


def _seconds(run: Run, count: int) -> float:
    begin = time.perf_counter()
    run(count)
    return time.perf_counter() - begin


def spread(seconds: Sequence[float]) -> Row:
    """The part of a row that tells of seconds: all of them, median and quartiles."""
    low, median, high = map(float, np.percentile(seconds, [25, 50, 75]))
    return {"seconds": list(seconds), "median_s": median, "q1_s": low, "q3_s": high}
