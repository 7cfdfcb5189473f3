"""Run folders: configuration, versions, seed, metrics and results of one run, side by side."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

from edl_jax.checked import OneOf, hints
from edl_jax.errors import EDLError, RunFolderError, shortened
from edl_jax.registry import Registry
from edl_jax.runs import environment
from edl_jax.runs.describing import describe
from edl_jax.runs.storage import (
    append,
    check_regular,
    make_folder,
    refused,
    remove_temporary,
    user_path,
    write_atomically,
)

METRICS = "metrics.jsonl"
Row = dict[str, Any]
_LOCK = ".lock"  # the name of the file that is locked, which says by whom
_PLACE = "data_dir"  # a setting that says where something lies, not what it is


def default_run_dir(command: str) -> Path:
    """`runs/COMMAND-DATE-TIME`, under the working directory."""
    # To the microsecond: a script may begin several runs at once.
    return Path("runs") / f"{command}-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if it is not there, while this process lives.

    It holds between hosts where the file system's `flock` does, as NFS's does.
    """
    path = folder / _LOCK
    with contextlib.ExitStack() as stack:
        with refused(
            f"{folder} cannot be written or locked",
            "Choose another folder, or give the same command again once it can.",
        ):
            make_folder(folder)
            if path.exists():
                check_regular(path)
            file = stack.enter_context(path.open("a+", errors="replace"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(200).strip() or "another process"  # that is just writing it
                raise RunFolderError(
                    f"{folder} is in use by {owner}: wait until it ends, stop it, or choose "
                    "another folder."
                ) from None
        since = datetime.datetime.now().isoformat(" ", "seconds")
        with contextlib.suppress(OSError):  # a full disk: who it is cannot be told, no more
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
        yield


@contextlib.contextmanager
def open_run(run_dir: str | os.PathLike[str], config: Mapping[str, Any]) -> Iterator["RunFolder"]:
    """Open a run folder, sweep it, and keep other runs out of it until the block ends.

    `config` is all that shapes the result, JSON data and configurations. Out of memory is an
    `EDLError`.
    """
    path = user_path(run_dir)
    with locked(path):
        folder = RunFolder(path, config)
        with refused(
            f"what a killed run left in {path} cannot be removed",
            "Remove the files and folders .*.edl-tmp there, or choose another folder.",
        ):
            # But in no run folder within, which another run may have now.
            within = [x for x in path.iterdir() if x.is_dir() and not (x / _LOCK).exists()]
            for each in (path, *within):
                remove_temporary(each)
        try:
            yield folder
        except Exception as error:
            is_of_jax = str(error).startswith("RESOURCE_EXHAUSTED")
            if not isinstance(error, MemoryError) and not is_of_jax:
                raise
            raise EDLError(
                f"there is not enough memory ({shortened(error)}). What was saved in {path} is as "
                "it was: give the same command again with more memory to resume."
            ) from error


class RunFolder:
    """A folder that belongs to one configuration; a run opens it by `open_run`.

    What cannot be read or written, is damaged or belongs to another configuration is a
    `RunFolderError`.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        """Create the folder, or take up the one that is there."""
        self.path = path
        if (path / "config.json").exists():
            recorded = _completed(read_json(path / "config.json"), config)
            if what := environment.difference(_identity(recorded), _identity(config)):
                raise RunFolderError(
                    f"{path} belongs to a run with another configuration: {shortened(what)}. "
                    "Choose another folder, or the same settings."
                )
            path = path / "environment.json"
            if noted := environment.noted(path, read_bytes(path) or b"{}"):
                self.write_json(path.name, noted)
        elif left := [*path.glob("checkpoints/[0-9]*"), *path.glob(METRICS)]:
            raise RunFolderError(
                f"{path} holds {left[0].name} of a run, but not its config.json, which says of "
                "which: put it back, or choose another folder."
            )
        else:
            self.write_json("environment.json", environment.described())
            # Last: it makes the folder this run's.
            self.write_json("config.json", _identity(config))

    def write_text(self, name: str, text: str) -> None:
        """Write the file `name`, whole or not at all."""
        with writing(name, self.path):
            write_atomically(self.path / name, text.encode())

    def write_json(self, name: str, value: object) -> None:
        """Write `value` to the file `name`, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def append_rows(self, rows: Iterable[Mapping[str, Any]], name: str = METRICS) -> None:
        """Append one JSON line for each row, which outlive the machine when this returns."""
        with writing(name, self.path):
            append(self.path / name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def read_rows(self, name: str = METRICS, *, check: Callable[[Row], object] = id) -> list[Row]:
        """The rows written so far; a last line cut short by a kill is dropped.

        `check` is called with each row, and raises `KeyError`, `TypeError` or `ValueError` for one
        that is damaged.
        """
        path, rows = self.path / name, []
        lines = read_bytes(path).splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it holds {row!r}")
                check(row)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                raise RunFolderError(
                    f"line {number} of {len(lines)} of {path} is damaged ({shortened(why)}). The "
                    "file was left as it is: remove that line to resume without it."
                ) from error
            rows.append(row)
        return rows

    def resume_rows(self, name: str = METRICS, *, check: Callable[[Row], object] = id) -> list[Row]:
        """The rows to resume from, as of `read_rows`; a line cut short is removed from the file."""
        rows = self.read_rows(name, check=check)
        self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def writing(name: str, folder: Path) -> AbstractContextManager[None]:
    """Raise a `RunFolderError` that says how to resume in place of an `OSError`."""
    return refused(
        f"{name} could not be written in {folder}",
        "What was saved before is as it was: once there is room and leave to write, give the same "
        "command again to resume.",
    )


def reading(path: Path) -> AbstractContextManager[None]:
    """Raise a `RunFolderError` that says how to resume in place of an `OSError`."""
    return refused(
        f"{path} cannot be read",
        "Everything was left as it is: give the same command again when it can.",
    )


def read_bytes(path: Path) -> bytes:
    """What a file of a run folder holds, nothing if it is not there."""
    with reading(path), contextlib.suppress(FileNotFoundError):
        check_regular(path)
        return path.read_bytes()
    return b""


def read_json(path: Path) -> Any:
    """The JSON value in a file of a run folder; a `RunFolderError` if it is none."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove the run folder.") from error


def _completed(recorded: Any, config: Any) -> Any:
    """What was recorded, with the defaults of the fields that no configuration had then."""
    if isinstance(recorded, dict) and dataclasses.is_dataclass(config):
        defaults = {x.name: x.default for x in dataclasses.fields(config)}
        known = {name: x for name, x in defaults.items() if x is not dataclasses.MISSING}
        recorded, config = {**known, **recorded}, vars(config)
    if isinstance(recorded, dict) and isinstance(config, Mapping):
        return {name: _completed(x, config.get(name)) for name, x in recorded.items()}
    return recorded


def _identity(config: Any) -> Any:
    """A configuration as it reads back from JSON; the data has a digest, and may be moved."""

    def placeless(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name != _PLACE}

    return json.loads(json.dumps(config, default=dataclasses.asdict), object_hook=placeless)


def as_json(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def own_parts(*configs: Any) -> dict[str, str]:
    """Describe the user-registered parts that configurations name."""
    parts = {}
    for config in filter(dataclasses.is_dataclass, configs):
        for name, value in vars(config).items():
            parts |= own_parts(value)
            for note in get_args(hints(type(config))[name]):
                table = note.table if isinstance(note, OneOf) else None
                if isinstance(table, Registry) and not table.is_protected(value):
                    parts[f"{table.kind} {value}"] = describe(table[value])
    return parts


def as_finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for what JSON has no number for: infinities and NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
