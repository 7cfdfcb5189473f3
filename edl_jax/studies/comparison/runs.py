"""The trainings of a comparison: several at once, each kept as it ends."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax

from edl_jax.errors import DivergedError
from edl_jax.runs.folder import as_finite
from edl_jax.studies.comparison.config import SPLITS
from edl_jax.training import TrainResult
from edl_jax.training.result import Row

TUNING, COMPARISON = "tuning", "comparison"
_MEASURED = ("test_accuracy", "test_nll", "test_calibration_error")
Cell = dict[str, Any]
Trainer = Callable[..., list[TrainResult]]  # as `make_trainer` gives


class _StoppedError(Exception):
    """Ends a training because another one failed, or because of a signal."""


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


def check_cell(cell: Cell) -> None:
    """Refuse, by a `KeyError`, `TypeError` or `ValueError`, a cell that cannot be compared."""
    hash(work_of(cell))
    numbers = [cell["seed"], cell["learning_rate"], cell["chance"]]
    numbers += [x for x in map(cell.__getitem__, _MEASURED) if x is not None]
    numbers += [row["accuracy"] for row in cell["epochs"]]
    for number in numbers:
        if type(number) not in (int, float):
            raise ValueError(f"{number!r} is no number")
    if not {row["evaluated_on"] for row in cell["epochs"]} <= {*SPLITS}:
        raise ValueError("its epochs were evaluated on neither test nor val")
    if not cell["diverged"] and not cell["epochs"]:
        raise ValueError("its epochs are missing")


def train_all(
    works: Sequence[Work],
    make: Callable[[Work], Trainer],
    keep: Callable[[Cell], None],
    advance: Callable[[], Any],
    *,
    test: bool = True,
) -> None:
    """Train from every seed of every loss, one after the other; on the CPU some side by side.

    Several seeds in one program would take longer: on an H200, 10 seeds of ResNet-8 (width 16,
    batch 128) together 148,000 images/s where one alone has 184,000.

    Args:
      works: the trainings.
      make: makes the trainer of a work, whatever its seed.
      keep: called with the cell of each training as it ends. A cell has the fields of its `Work`,
        `diverged` (None, or what was said about it), `test_accuracy`, `test_nll`,
        `test_calibration_error` (None if it diverged, in tuning, and without `test`), and `epochs`,
        the rows of its history.
      advance: called after every epoch of every training; what it raises ends all of them.
      test: whether the test images are looked at in the comparison.

    Raises:
      EDLError: as a trainer, but not if a training diverges; and what `advance` raises.
    """
    works = _in_order(works)
    # A trainer holds compiled programs: it goes with the last of its works.
    left = Counter(_program(work) for work in works)
    trainers = {program: make(program) for program in left}
    stopping, lock = threading.Event(), threading.Lock()

    def report(_: Row) -> None:
        advance()
        if stopping.is_set():
            raise _StoppedError

    def run(work: Work) -> None:
        if stopping.is_set():
            return
        program = _program(work)
        try:
            found = _train(trainers[program], work, report, test and work.phase == COMPARISON)
        except _StoppedError:  # the reason is told where it arose
            return
        except BaseException:
            stopping.set()
            raise
        with lock:
            keep(found)  # here: what has ended is kept even if another training fails meanwhile
            left[program] -= 1
            if not left[program]:
                del trainers[program]

    with ThreadPoolExecutor(_num_side_by_side()) as pool:
        futures = [pool.submit(run, work) for work in works]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # A training failed, or Ctrl-C: the others end with their epoch.
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise


def _train(train: Trainer, work: Work, report: Callable[[Row], None], test: bool) -> Cell:
    rows = []

    def note(row: Row) -> None:
        rows.append(row)
        report(row)

    try:
        (result,) = train([work.seed], report=note, test=test)
    except DivergedError as error:
        return _cell(work, rows, diverged=str(error))
    return _cell(work, result.history, result if test else None)


def _cell(
    work: Work,
    epochs: Sequence[Row],
    result: TrainResult | None = None,
    *,
    diverged: str | None = None,
) -> Cell:
    found = {name: getattr(result, name) if result else None for name in _MEASURED}
    rows = [as_finite(row) for row in epochs]
    return {**work._asdict(), "diverged": diverged, **as_finite(found), "epochs": rows}


def _program(work: Work) -> Work:
    return work._replace(seed=0)


def _in_order(works: Sequence[Work]) -> list[Work]:
    """As many losses at a time as run side by side, seed by seed.

    A loss begun twice at the same time would be compiled twice, and of many losses not all programs
    are to be in memory.
    """
    programs = dict.fromkeys(_program(work) for work in works)
    block = {program: i // _num_side_by_side() for i, program in enumerate(programs)}
    return sorted(works, key=lambda work: (block[_program(work)], work.seed))


def _num_side_by_side() -> int:
    """Calls to run at once: XLA's CPU backend leaves cores idle in a small convolution.

    Not on several devices, all of which each training uses already.
    """
    alone = jax.default_backend() != "cpu" or jax.device_count() > 1
    return 1 if alone else min(4, os.cpu_count() or 1)
