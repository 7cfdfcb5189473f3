"""The one loop: it drives what evolves and what trains, and keeps what they have come to."""

import contextlib
import io
import json
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from edl_jax.errors import DivergedError, Preempted
from edl_jax.runs.devices import to_every_device
from edl_jax.runs.folder import METRICS, Row, RunFolder, as_finite, read_json, writing
from edl_jax.runs.preemption import noticed
from edl_jax.runs.processes import arrays_from_first, first_does, in_any, others_needed
from edl_jax.runs.streams import Lenient

State = TypeVar("State")
_NONE_KEPT = "No checkpoint was kept: there is no run folder, or it was in the first period."
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left, {rate_fmt}{postfix}"


class Run(Protocol[State]):
    """What `fit` can drive; rows are written to files, and begin with a number of their own."""

    name: str  # what it does, such as "evolve"
    unit: str  # in what it advances, such as "generation"
    total: int  # how many units it has in all
    period: int  # after how many of them it is measured, and saved; after the last one too
    chunk: int  # how many it advances by at most, before it looks whether it is to stop
    files: tuple[str, ...]  # of the rows of `advance`, then of `measure` if it has another
    mesh: Mesh  # the devices that hold the state

    def init(self, key: jax.Array) -> State:
        """The state before the first unit, a pytree of arrays; it is put whole on every device."""
        ...

    def advance(self, state: State, n: int) -> tuple[State, list[Row]]:
        """The state `n` units later, and their rows; may donate the state."""
        ...

    def measure(self, state: State) -> Row:
        """The row of a period that has ended."""
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
    """Drive a run to its end, from its newest checkpoint in the folder if there is one.

    Of several processes the first alone has a folder; in it the `keep` newest checkpoints
    stay. `progress` tells how far it is: by a bar on a terminal, by a line a period elsewhere.
    `watch` is called with the number of units done, the state, which may be donated afterwards, and
    the measured row: after each period, and before the first unit with None.

    SIGTERM is raised as `Preempted` after saving; a `DivergedError` names the last good checkpoint.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(others_needed())
        has_folder = in_any(folder is not None)
        terminated = stack.enter_context(noticed(signal.SIGTERM)) if has_folder else []
        keeper = _Keeper(run, jax.device_get(run.init(key)))
        done, rows = 0, [[] for _ in run.files]
        if has_folder:
            done, rows = first_does(partial(keeper.resume, stack, folder, keep))
        state: Any = to_every_device(arrays_from_first(keeper.state), run.mesh)
        saved = done
        stream: Any = Lenient(sys.stderr or io.StringIO())
        bar = stack.enter_context(_bar(run, done, progress, stream))
        if done == 0:
            watch(done, state, None)
        new: list[Row] = []
        while done < run.total:
            n = min(run.chunk, run.period - done % run.period, run.total - done)
            try:
                state, more = run.advance(state, n)
            except DivergedError as error:
                where = f" ({folder.path / 'checkpoints' / str(saved)})" if folder else ""
                kept = f"The last good checkpoint is that of step {saved}{where}."
                raise DivergedError(f"{error} {kept if saved else _NONE_KEPT}") from None
            done, new = done + n, new + more
            stop = has_folder and in_any(bool(terminated)) and done < run.total
            row = run.measure(state) if done % run.period == 0 or done == run.total else None
            if has_folder and (row or stop):
                first_does(partial(keeper.save, done, state, new, row))
                saved = done
            if row:
                summary = run.summary({**(new[-1] if new else {}), **row})
                bar.set_postfix_str(summary, refresh=False)
            bar.update(n)
            if row:
                if progress and not stream.isatty():
                    print(bar, file=stream, flush=True)
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
        self, stack: contextlib.ExitStack, folder: Any, keep: int
    ) -> tuple[int, list[list[Row]]]:
        """Units done and the rows of each file; `state` is then the one they have come to."""
        from edl_jax.runs.checkpoints import Checkpoints  # loads Orbax, which takes a second

        run, path = self._run, folder.path
        files = {path / run.files[0]: run.period, path / run.files[-1]: 1}
        checkpoints = Checkpoints(path / "checkpoints", keep=keep, files=files)
        self._checkpoints = stack.enter_context(checkpoints)
        done, self.state = checkpoints.restore_latest(self.state)
        rows = [folder.read_rows(name) for name in run.files]
        first_step = next(iter(rows[0][-1].values())) + 1 if rows[0] else 0
        _load_tensorboard()
        self._folder, self._board = folder, _TensorBoard(path, first_step)
        stack.callback(self._board.close)
        return done, rows

    def save(self, done: int, state: Any, new: Sequence[Row], row: Row | None) -> None:
        """Save new rows, a row that was measured, and then a checkpoint, which counts on them."""
        files = self._run.files
        for name, rows in ((files[0], new), (files[-1], [row] if row else [])):
            if rows:
                self._folder.append_rows(map(as_finite, rows), name)
                self._board.write(name, rows)
        self._checkpoints.save(done, jax.device_get(state))


def _load_tensorboard() -> None:
    """Load tensorboardX without PyTorch, which it would load, for seconds, to annotate with."""
    stub: Any = types.ModuleType("torch")
    stub.Tensor = type("Tensor", (), {})
    is_new = sys.modules.setdefault("torch", stub) is stub
    try:
        import tensorboardX  # noqa: F401  # pyright: ignore[reportUnusedImport]
    finally:
        if is_new:
            del sys.modules["torch"]


class _TensorBoard:
    """A new event file of a run, which shows its configuration and rows in TensorBoard."""

    def __init__(self, run_dir: Path, first_step: int):
        """Open a file in which what was shown from the first step on is replaced."""
        # Not a SummaryWriter: a full disk ends its thread, and then it waits for that for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import text

        self._run_dir, folder = run_dir, run_dir / "tensorboard"
        self._proto: Any = event_pb2  # protobuf makes its classes, unseen by type checkers
        with writing("an event file", run_dir):
            folder.mkdir(exist_ok=True)
            # The file is named by the second: by the suffix two of one second differ.
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._add(step=first_step, session_log={"status": self._proto.SessionLog.START})
        if first_step == 0:
            config = json.dumps(read_json(run_dir / "config.json"), indent=2)
            self._add(step=0, summary=text("config", f"```\n{config}\n```"))

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Show the numbers of rows of a file, whole and at once; the first in a row is its step."""
        group = "" if name == METRICS else f"{Path(name).stem}/"
        for row in rows:
            (_, step), *items = row.items()
            numbers = [(key, x) for key, x in items if isinstance(x, int | float)]
            values = [{"tag": f"{group}{key}", "simple_value": x} for key, x in numbers]
            self._add(step=step, summary={"value": values})

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()

    def _add(self, **event: Any) -> None:
        with writing("an event file", self._run_dir):
            self._writer.write_event(self._proto.Event(wall_time=time.time(), **event))
            self._writer.flush()


def _bar(run: Run[Any], done: int, progress: bool, stream: Any) -> tqdm:
    """How far a run is: a bar on a terminal; elsewhere what `fit` prints, a line a period."""
    return tqdm(
        desc=run.name,
        initial=done,
        total=run.total,
        unit=run.unit,
        disable=not progress,
        **({"file": stream} if stream.isatty() else {"file": io.StringIO(), "bar_format": _LINE}),
    )
