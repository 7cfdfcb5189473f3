"""What TensorBoard shows of a run folder: its metrics, configuration, tables and figures."""

import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edl_jax.runs.folder import RunFolder, read_json, writing

FOLDER = "tensorboard"
Write = Callable[[int, Mapping[str, Any]], None]


@contextlib.contextmanager
def event_file(run_dir: Path, *, first_step: int) -> Iterator[Write]:
    """A new event file of a run; what TensorBoard shows from `first_step` on is replaced by it.

    The first of a run, from step 0, begins with the configuration. Gives a function `(step, row)`
    that writes the row's numbers, whole and at once.

    Raises:
      RunFolderError: if the file cannot be written; so does the function.
    """
    events, _ = _protocol()
    with _writer(run_dir) as add:
        start = events.SessionLog(status=events.SessionLog.START)
        add(events.Event(step=first_step, session_log=start))
        if first_step == 0:
            add(_event([_text("config", config_text(run_dir))]))
        yield lambda step, row: add(_event(_numbers(row), step))


def open_events(
    stack: contextlib.ExitStack, folder: RunFolder | None, first_step: int
) -> Write | None:
    """Open a new `event_file` of a run folder, if there is one, for as long as `stack` is open."""
    if folder is None:
        return None
    return stack.enter_context(event_file(folder.path, first_step=first_step))


def add_results(
    run_dir: Path, *, images: Mapping[str, Path], texts: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Show texts, as Markdown, and PNG files by name beside a run's metrics.

    What was shown by an earlier call is replaced.

    Raises:
      RunFolderError: if the event file cannot be written.
    """
    earlier = list((run_dir / FOLDER).glob("*.results"))
    with _writer(run_dir, ".results") as add:
        for name, text in texts.items():
            add(_event([_text(name, text)]))
        for name, path in images.items():
            add(_event([_image(name, path)]))
    with writing("an event file", run_dir):
        for path in earlier:
            path.unlink()


def config_text(run_dir: Path) -> str:
    """A run's configuration, as Markdown."""
    return f"```\n{json.dumps(read_json(run_dir / 'config.json'), indent=2)}\n```"


@contextlib.contextmanager
def _writer(run_dir: Path, kind: str = "") -> Iterator[Callable[[Any], None]]:
    # Not its SummaryWriter, which writes in a thread of its own that a full disk would end.
    from tensorboardX.event_file_writer import EventsWriter

    folder = run_dir / FOLDER
    with writing("an event file", run_dir):
        folder.mkdir(parents=True, exist_ok=True)
        # The file is named by the second: by the suffix two of one second differ.
        suffix = f".{time.time_ns()}{kind}"
        writer = EventsWriter(str(folder / "events"), filename_suffix=suffix)

    def add(event: Any) -> None:
        event.wall_time = time.time()
        with writing("an event file", run_dir):
            writer.write_event(event)
            writer.flush()

    try:
        yield add
    finally:
        with contextlib.suppress(OSError):
            writer.close()


def _protocol() -> tuple[Any, Any]:
    """TensorBoard's events and summaries; protobuf makes the classes, unseen by type checkers."""
    from tensorboardX.proto import event_pb2, summary_pb2

    return event_pb2, summary_pb2


def _event(values: list[Any], step: int = 0) -> Any:
    events, summaries = _protocol()
    return events.Event(step=step, summary=summaries.Summary(value=values))


def _numbers(row: Mapping[str, Any]) -> list[Any]:
    _, summaries = _protocol()
    return [
        summaries.Summary.Value(tag=name, simple_value=value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("generation", "epoch")
    ]


def _text(name: str, text: str) -> Any:
    from tensorboardX import summary

    return summary.text(name, text).value[0]


def _image(name: str, path: Path) -> Any:
    _, summaries = _protocol()
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of every PNG's first chunk
    image = summaries.Summary.Image(
        width=width, height=height, colorspace=4, encoded_image_string=data
    )
    return summaries.Summary.Value(tag=name, image=image)
