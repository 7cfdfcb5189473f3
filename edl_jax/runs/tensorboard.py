"""What TensorBoard shows of a run folder: its metrics and configuration."""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edl_jax.runs.folder import METRICS, Row, read_json, writing


class TensorBoard:
    """A new event file of a run, which takes its rows; a context manager."""

    def __init__(self, run_dir: Path, *, first_step: int):
        """Open a file in which what was shown from the first step on is replaced."""
        # Not its SummaryWriter, which writes in a thread of its own that a full disk would end.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        # protobuf makes their classes, unseen by type checkers.
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._run_dir, folder = run_dir, run_dir / "tensorboard"
        with writing("an event file", run_dir):
            folder.mkdir(parents=True, exist_ok=True)
            # The file is named by the second: by the suffix two of one second differ.
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(step=first_step, session_log=start)
        if first_step == 0:
            config = json.dumps(read_json(run_dir / "config.json"), indent=2)
            self._add(step=0, summary=summary.text("config", f"```\n{config}\n```"))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Show the numbers of rows of a file, whole and at once; the first in a row is its step."""
        group = "" if name == METRICS else f"{Path(name).stem}/"
        for row in rows:
            (_, step), *items = row.items()
            numbers = [
                self._summaries.Summary.Value(tag=f"{group}{key}", simple_value=value)
                for key, value in items
                if isinstance(value, int | float)
            ]
            self._add(step=step, summary=self._summaries.Summary(value=numbers))

    def _add(self, **event: Any) -> None:
        with writing("an event file", self._run_dir):
            self._writer.write_event(self._events.Event(wall_time=time.time(), **event))
            self._writer.flush()
