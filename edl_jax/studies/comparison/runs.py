"""The trainings of a comparison: several at once, each kept as it ends."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax

from edl_jax.errors import DivergedError, EDLError
from edl_jax.runs import as_finite
from edl_jax.training import TrainResult
from edl_jax.training.result import Row

TUNING, COMPARISON = "tuning", "comparison"
Cell = dict[str, Any]
Trainer = Callable[..., list[TrainResult]]  # as `make_trainer` gives


class Work(NamedTuple):
    """One training: what its cell is found by.

    Attributes:
      phase: `TUNING`, of a learning rate, which sees no test image; or `COMPARISON`.
      loss: name of the loss.
      model: name of the model.
      dataset: name that the data set has for itself.
      noise_rate: of `TrainConfig`.
      learning_rate: peak learning rate.
      seed: seed of the training.
    """

    phase: str
    loss: str
    model: str
    dataset: str
    noise_rate: float
    learning_rate: float
    seed: int


def work_of(cell: Cell) -> Work:
    """The training that a cell is of."""
    return Work(*(cell[name] for name in Work._fields))


def train_all(
    works: Sequence[Work],
    make: Callable[[Work], Trainer],
    keep: Callable[[list[Cell]], None],
    advance: Callable[[], Any],
    *,
    test: bool = True,
) -> None:
    """Train from every seed of every loss: side by side on the CPU, else all seeds in one program.

    Args:
      works: the trainings.
      make: makes the trainer of a work, whatever its seed.
      keep: called with cells as trainings end. A cell has the fields of its `Work`, `diverged`
        (None, or what was said about it), `test_accuracy`, `test_nll`, `test_calibration_error`
        (None if it diverged, in tuning, and without `test`), and `epochs`, the rows of its history.
      advance: called after every epoch of every training.
      test: whether the test images are looked at in the comparison.

    Raises:
      EDLError: as a trainer, but not if a training diverges.
    """
    groups = _groups(works)
    # A trainer holds compiled programs: it goes with the last of its groups.
    left = Counter(_program(group) for group in groups)
    trainers = {program: make(program) for program in left}
    stopping, lock = threading.Event(), threading.Lock()

    def report(_: Row) -> None:
        if stopping.is_set():
            raise EDLError("the comparison was stopped")
        advance()

    def run(group: Sequence[Work]) -> None:
        program = _program(group)
        found = _train(trainers[program], group, report, test and group[0].phase == COMPARISON)
        with lock:
            keep(found)  # here: what has ended is kept even if another training fails meanwhile
            left[program] -= 1
            if not left[program]:
                del trainers[program]

    with ThreadPoolExecutor(_num_side_by_side()) as pool:
        futures = [pool.submit(run, group) for group in groups]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # Another training failed, or Ctrl-C: the others end with their epoch.
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise


def _train(
    train: Trainer, group: Sequence[Work], report: Callable[[Row], None], test: bool
) -> list[Cell]:
    """Cells of trainings that differ in their seeds alone."""
    rows = []

    def note(row: Row) -> None:
        rows.append(row)
        report(row)

    try:
        results = train([work.seed for work in group], report=note, test=test)
    except DivergedError as error:
        if len(group) > 1:  # one ended all: alone, the others go on
            return [cell for work in group for cell in _train(train, [work], report, test)]
        return [_cell(group[0], rows, diverged=str(error))]
    return [
        _cell(work, result.history, result if test else None)
        for work, result in zip(group, results, strict=True)
    ]


def _cell(
    work: Work,
    epochs: Sequence[Row],
    result: TrainResult | None = None,
    *,
    diverged: str | None = None,
) -> Cell:
    measured = ("test_accuracy", "test_nll", "test_calibration_error")
    found = {name: getattr(result, name) if result else None for name in measured}
    rows = [as_finite(row) for row in epochs]
    return {**work._asdict(), "diverged": diverged, **as_finite(found), "epochs": rows}


def _program(group: Sequence[Work]) -> Work:
    return group[0]._replace(seed=0)


def _groups(works: Sequence[Work]) -> list[list[Work]]:
    """Works that one call trains, in the order in which they are begun."""
    together: dict[Work, list[Work]] = {}
    for work in works:
        together.setdefault(_program([work]), []).append(work)
    if jax.default_backend() != "cpu":
        return list(together.values())
    # As many losses at a time as run side by side, seed by seed: a loss begun twice at the same
    # time would be compiled twice, and of many losses not all programs are to be in memory.
    block = {program: i // _num_side_by_side() for i, program in enumerate(together)}
    ordered = sorted(works, key=lambda work: (block[_program([work])], work.seed))
    return [[work] for work in ordered]


def _num_side_by_side() -> int:
    """Calls to run at once: XLA's CPU backend leaves cores idle in a small convolution."""
    return min(4, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
