"""The one loop: it drives what evolves and what trains, and keeps what they have come to."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from edl_jax.errors import DivergedError, Preempted, RunFolderError
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.devices import to_every_device
from edl_jax.runs.folder import JsonLines, Row, RunFolder
from edl_jax.runs.preemption import sigterm_noticed
from edl_jax.runs.processes import arrays_from_first, first_does, in_any, others_needed
from edl_jax.runs.tensorboard import TensorBoard

State = TypeVar("State")
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left, {rate_fmt}{postfix}"


class Run(Protocol[State]):
    """What `fit` can drive.

    Attributes:
      name: what it does, such as "evolve".
      unit: in what it advances, such as "generation".
      total: how many units it has in all.
      period: after how many of them it is measured, and saved; after the last one too.
      chunk: how many it advances by at most, before it looks whether it is to stop.
      files: of its rows, whose first entry is the row's number: that of `advance`, and that of
        `measure`, which may be the same.
      mesh: the devices that hold the state.
    """

    name: str
    unit: str
    total: int
    period: int
    chunk: int
    files: tuple[str, ...]
    mesh: Mesh

    def init(self, key: jax.Array) -> State:
        """The state before the first unit, a pytree of arrays; it is put whole on every device."""
        ...

    def advance(self, state: State, n: int) -> tuple[State, list[Row]]:
        """The state `n` units later, and their rows; may donate the state."""
        ...

    def measure(self, state: State) -> Row:
        """The row of a period that has ended."""
        ...

    def score(self, row: Row) -> float:
        """By which measured row a checkpoint is best: larger is better."""
        ...

    def summary(self, row: Row) -> str:
        """What to tell, while it runs, of the last rows of all files together."""
        ...


class Fitted(NamedTuple):
    """What a run has come to: its last state, on the devices, and the rows of each file."""

    state: Any
    rows: list[list[Row]]


def fit(
    run: Run[State],
    key: jax.Array,
    *,
    folder: RunFolder | None = None,
    keep: int = 2,
    progress: bool = False,
    watch: Callable[[int, State, Row | None], None] = lambda done, state, row: None,
) -> Fitted:
    """Drive a run to its end, from its newest checkpoint if there is one.

    Args:
      run: what to drive.
      key: of its initial state.
      folder: where rows and checkpoints go; what is found there is taken up. Of several processes,
        the first alone has one.
      keep: how many of the newest checkpoints to keep, beside the best.
      progress: whether to tell how far it is: by a bar on a terminal, by a line for each period
        elsewhere.
      watch: called with the number of units done, the state and None before the first unit, and
        with the measured row after each period. The state may be donated afterwards.

    Raises:
      DivergedError: as `run.advance`, with the last good checkpoint.
      Preempted: on SIGTERM, after saving; only with a folder.
      ProcessError: if another process is gone.
      RunFolderError: if the folder is damaged, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(others_needed())
        has_folder = in_any(folder is not None)
        terminated = stack.enter_context(sigterm_noticed()) if has_folder else lambda: False
        keeper = _Keeper(run, jax.device_get(run.init(key)))
        done, rows = 0, [[] for _ in run.files]
        if has_folder:
            done, rows = first_does(partial(keeper.resume, stack, folder, keep))
        state: Any = to_every_device(arrays_from_first(keeper.state), run.mesh)
        saved = done
        tell = stack.enter_context(_telling(run, done, progress))
        if done == 0:
            watch(done, state, None)
        new: list[Row] = []
        while done < run.total:
            n = min(run.chunk, run.period - done % run.period, run.total - done)
            try:
                state, more = run.advance(state, n)
            except DivergedError as error:
                raise DivergedError(f"{error} {_kept(folder, has_folder, saved)}") from None
            done, new = done + n, new + more
            stop = has_folder and in_any(terminated()) and done < run.total
            row = run.measure(state) if done % run.period == 0 or done == run.total else None
            if has_folder and (row or stop):
                first_does(partial(keeper.save, done, state, new, row))
                saved = done
            tell(done, run.summary({**(new[-1] if new else {}), **row}) if row else None)
            if row:
                rows[0].extend(new)
                rows[-1].append(row)
                new = []
                watch(done, state, row)
            if stop:
                raise Preempted(
                    f"told to stop by SIGTERM after {run.unit} {done} of {run.total}; everything "
                    "is saved. Give the same command again to resume."
                )
        return Fitted(state, rows)


class _Keeper:
    """Keeps in a folder what a run comes to; of several processes, in the first alone."""

    def __init__(self, run: Run[Any], state: Any):
        self._run, self.state = run, state

    def resume(
        self, stack: contextlib.ExitStack, folder: RunFolder, keep: int
    ) -> tuple[int, list[list[Row]]]:
        """Units done and the rows of each file; `state` is then the one they have come to."""
        checkpoints = Checkpoints(folder.path / "checkpoints", keep=keep)
        self._checkpoints = stack.enter_context(checkpoints)
        self._rows = JsonLines(folder, self._run.files)
        done, self.state, rows = resume(
            folder, self._checkpoints, self._rows, self.state, self._run.period
        )
        first_step = next(iter(rows[0][-1].values())) + 1 if rows[0] else 0
        board = stack.enter_context(TensorBoard(folder.path, first_step=first_step))
        self._writers = [self._rows, board]
        return done, rows

    def save(self, done: int, state: Any, new: Sequence[Row], row: Row | None) -> None:
        """Save new rows, a row that was measured, and then a checkpoint, which counts on them."""
        files = self._run.files
        for name, rows in ((files[0], new), (files[-1], [row] if row else [])):
            for writer in self._writers if rows else []:
                writer.write(name, rows)
        score = -math.inf if row is None else self._run.score(row)
        notes = self._rows.notes()
        self._checkpoints.save(done, jax.device_get(state), score=score, notes=notes)


def resume(
    folder: RunFolder, checkpoints: Checkpoints, rows: JsonLines, like: Any, period: int
) -> tuple[int, Any, list[list[Row]]]:
    """The newest checkpoint that is whole and whose rows are: its step, state and rows.

    Rows after it are dropped, to be logged again. `(0, like, no rows)` is given of a new run; where
    more rows than of a first period stand without a checkpoint, nothing is changed or given.
    """
    lines = rows.lines()
    if not checkpoints.steps() and (lines[-1] > 1 or max(lines) > period):
        raise RunFolderError(
            f"{folder.path} has {max(lines)} rows but no checkpoint. Nothing was changed: put the "
            f"folder checkpoints back from a copy; or rename {folder.path} and give the same "
            "command to begin anew."
        )
    step, state, notes = checkpoints.restore_latest(like, rows.misfit)
    return step, state, rows.take_up(notes)


@contextlib.contextmanager
def _telling(
    run: Run[Any], first: int, progress: bool
) -> Iterator[Callable[[int, str | None], None]]:
    """A function that tells how many units are done and, where given, a text of a period.

    By a bar on a terminal, by a line for each text where the standard error is none.
    """
    told = {"initial": first, "total": run.total, "unit": run.unit}
    began, is_terminal = time.monotonic(), sys.stderr.isatty()
    with tqdm(desc=run.name, disable=not (progress and is_terminal), **told) as bar:

        def tell(done: int, text: str | None) -> None:
            if text is not None:
                bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)
            if text is not None and progress and not is_terminal:
                how = {"prefix": run.name, "postfix": text, "bar_format": _LINE}
                line = tqdm.format_meter(done, elapsed=time.monotonic() - began, **how, **told)
                print(line, file=sys.stderr, flush=True)

        yield tell


def _kept(folder: RunFolder | None, has_folder: bool, saved: int) -> str:
    if not has_folder:
        return "No checkpoint was kept (no run folder)."
    if not saved:
        return "It was before the first checkpoint."
    where = f" ({folder.path / 'checkpoints' / str(saved)})" if folder is not None else ""
    return f"The last good checkpoint is that of step {saved}{where}."
