"""Metrics as an event file of TensorBoard, beside a run folder's JSON lines."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edl_jax.runs import writing

Write = Callable[[int, Mapping[str, Any]], None]


@contextlib.contextmanager
def event_file(folder: Path, *, first_step: int) -> Iterator[Write]:
    """A new event file in `folder`; what TensorBoard shows from `first_step` on is replaced by it.

    Gives a function `(step, row)` that writes the row's numbers, whole and at once.

    Raises:
      RunFolderError: if the file cannot be written; so does the function.
    """
    # Not its SummaryWriter, which writes in a thread of its own that a full disk would end.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2, summary_pb2

    events: Any = event_pb2  # protobuf makes their classes at run time, unseen by type checkers
    summaries: Any = summary_pb2

    with writing("an event file", folder):
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / "events"))
        start = events.SessionLog(status=events.SessionLog.START)
        writer.write_event(events.Event(step=first_step, session_log=start))
        writer.flush()

    def write(step: int, row: Mapping[str, Any]) -> None:
        values = [
            summaries.Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if isinstance(value, int | float)
        ]
        with writing("an event file", folder):
            writer.write_event(events.Event(step=step, summary=summaries.Summary(value=values)))
            writer.flush()

    try:
        yield write
    finally:
        with contextlib.suppress(OSError):
            writer.close()
