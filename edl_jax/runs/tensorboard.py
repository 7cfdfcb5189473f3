"""What TensorBoard shows of a run folder: its metrics, configuration, tables and figures."""

import contextlib
import json
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edl_jax.runs.folder import METRICS, Row, read_json, writing

FOLDER = "tensorboard"
_NONE: Mapping[str, Any] = MappingProxyType({})


class TensorBoard:
    """A new event file of a run, whose rows it takes as a `MetricWriter`. A context manager.

    What it cannot write is a `RunFolderError`.
    """

    def __init__(self, run_dir: Path, *, first_step: int | None = None, suffix: str = ""):
        """Open a file.

        Args:
          run_dir: the run folder.
          first_step: what TensorBoard shows from this step on is replaced; by default nothing.
          suffix: ends the file's name.
        """
        # Not its SummaryWriter, which writes in a thread of its own that a full disk would end.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        # protobuf makes their classes, unseen by type checkers.
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._run_dir, folder = run_dir, run_dir / FOLDER
        with writing("an event file", run_dir):
            folder.mkdir(parents=True, exist_ok=True)
            # The file is named by the second: by the suffix two of one second differ.
            suffix = f".{time.time_ns()}{suffix}"
            self._writer = EventsWriter(str(folder / "events"), filename_suffix=suffix)
        if first_step is not None:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(step=first_step, session_log=start)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Show the numbers of rows, whole and at once; the first in a row is its step."""
        group = "" if name == METRICS else f"{Path(name).stem}/"
        for row in rows:
            (_, step), *items = row.items()
            numbers = [
                self._summaries.Summary.Value(tag=f"{group}{key}", simple_value=value)
                for key, value in items
                if isinstance(value, int | float)
            ]
            self._show(numbers, step)

    def show(self, *, texts: Mapping[str, str] = _NONE, images: Mapping[str, Path] = _NONE) -> None:
        """Show texts, as Markdown, and PNG files by name."""
        from tensorboardX import summary

        for name, text in texts.items():
            self._show(summary.text(name, text).value)
        for name, path in images.items():
            data = path.read_bytes()
            width, height = struct.unpack(">II", data[16:24])  # of every PNG's first chunk
            image = self._summaries.Summary.Image(
                width=width, height=height, colorspace=4, encoded_image_string=data
            )
            self._show([self._summaries.Summary.Value(tag=name, image=image)])

    def _show(self, values: Sequence[Any], step: int = 0) -> None:
        self._add(step=step, summary=self._summaries.Summary(value=values))

    def _add(self, **event: Any) -> None:
        with writing("an event file", self._run_dir):
            self._writer.write_event(self._events.Event(wall_time=time.time(), **event))
            self._writer.flush()


def add_results(
    run_dir: Path, *, images: Mapping[str, Path], texts: Mapping[str, str] = _NONE
) -> None:
    """Show texts and images beside a run's metrics, in place of those of an earlier call."""
    earlier = list((run_dir / FOLDER).glob("*.results"))
    with TensorBoard(run_dir, suffix=".results") as board:
        board.show(texts=texts, images=images)
    with writing("an event file", run_dir):
        for path in earlier:
            path.unlink()


def config_text(run_dir: Path) -> str:
    """A run's configuration, as Markdown."""
    return f"```\n{json.dumps(read_json(run_dir / 'config.json'), indent=2)}\n```"
