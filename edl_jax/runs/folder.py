"""Run folders: configuration, versions, seed, metrics and results of one run, side by side."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edl_jax.errors import ConfigError, EDLError, RunFolderError, shortened
from edl_jax.runs import environment
from edl_jax.runs.locks import LOCK, locked
from edl_jax.runs.storage import append, check_regular, sweep, user_path, write_atomically

_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED")  # how JAX's message begins


def default_run_dir(command: str) -> Path:
    """`runs/COMMAND-DATE-TIME`, under the working directory."""
    # To the microsecond: a script may begin several runs at once.
    return Path("runs") / f"{command}-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"


@contextlib.contextmanager
def open_run(run_dir: str | os.PathLike[str], config: Mapping[str, Any]) -> Iterator["RunFolder"]:
    """Open a run folder, and keep other runs out of it until the block ends.

    What killed runs left half-written there is removed.

    Args:
      run_dir: the folder, as a user gave it; `~` is the home folder.
      config: all that shapes the run's result, as JSON data.

    Raises:
      ConfigError: if `run_dir` is no path, or not in UTF-8.
      RunFolderError: if another run has the folder now, or as `RunFolder` does.
      EDLError: if memory runs out in the block.
    """
    path = user_path(run_dir)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:  # Orbax would fail after the first generations or epoch
        raise ConfigError(f"the path is {path.absolute()!r}; expected one in UTF-8.") from error
    with locked(path):
        folder = RunFolder(path, config)
        try:
            # But in no run folder within, which another run may have now.
            within = [x for x in path.iterdir() if x.is_dir() and not (x / LOCK).exists()]
            for each in (path, *within):
                sweep(each)
        except OSError as error:
            raise RunFolderError(
                f"what a killed run left in {path} cannot be removed ({error}): remove the files "
                "and folders .*.edl-tmp there, or choose another folder."
            ) from error
        try:
            yield folder
        except Exception as error:
            if not isinstance(error, MemoryError) and not _NO_MEMORY.match(str(error)):
                raise
            raise EDLError(
                f"there is not enough memory ({shortened(error)}). What was saved in {path} is as "
                "it was: give the same command again with more memory to resume."
            ) from error


class RunFolder:
    """A folder that belongs to one configuration.

    Holds `config.json`, `environment.json`, `metrics.jsonl` and whatever the run adds. A run opens
    it by `open_run`, which keeps other runs out.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        """Create the folder, or take up the one that is there.

        Args:
          path: the folder.
          config: all that shapes the run's result, as JSON data.

        Raises:
          RunFolderError: if the folder belongs to another configuration, is damaged, or cannot be
            written. All that write to it raise this too.
        """
        self.path = path
        config = json.loads(json.dumps(config))  # as it reads back: tuples become lists
        if (path / "config.json").exists():
            found = read_json(path / "config.json")
            if found != config:
                what = shortened(environment.difference(found, config))
                raise RunFolderError(
                    f"{path} belongs to a run with another configuration: {what}. Choose another "
                    "folder, or the same settings."
                )
            path = path / "environment.json"
            if noted := environment.noted(path, read_bytes(path) if path.exists() else b"{}"):
                self.write_json(path.name, noted)
        else:
            self.write_json("environment.json", environment.described())
            self.write_json("config.json", config)  # last: it makes the folder this run's

    def write_text(self, name: str, text: str) -> None:
        """Write the file `name`, whole or not at all."""
        with writing(name, self.path):
            write_atomically(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` to the file `name`, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def append_rows(self, rows: Iterable[Mapping[str, Any]], name: str = "metrics.jsonl") -> None:
        """Append one JSON line for each row."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        with writing(name, self.path):
            append(self.path / name, lines.encode())  # a checkpoint counts on it

    def read_rows(
        self, name: str = "metrics.jsonl", *, check: Callable[[dict[str, Any]], Any] = id
    ) -> list[dict[str, Any]]:
        """The rows written so far; a last line cut short by a kill is dropped.

        Args:
          name: the file.
          check: called with each row; raises `KeyError`, `TypeError` or `ValueError` for one that
            is damaged.

        Raises:
          RunFolderError: if another line is no JSON object, a row fails the check, or the file
            cannot be read.
        """
        path = self.path / name
        lines = read_bytes(path).splitlines() if path.exists() else []
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it holds {row!r}")
                check(row)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if number == len(lines):
                    break
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                raise RunFolderError(
                    f"line {number} of {len(lines)} of {path} is damaged ({shortened(why)}). The "
                    "file was left as it is: remove that line to resume without it."
                ) from error
            rows.append(row)
        return rows

    def resume_rows(
        self,
        is_kept: Callable[[dict[str, Any]], bool] = lambda row: True,
        name: str = "metrics.jsonl",
        *,
        check: Callable[[dict[str, Any]], Any] = id,
    ) -> list[dict[str, Any]]:
        """The rows to resume from; the others, and a line cut short, are removed from the file."""
        rows = [row for row in self.read_rows(name, check=check) if is_kept(row)]
        self.rewrite_rows(rows, name)
        return rows

    def rewrite_rows(self, rows: Iterable[Mapping[str, Any]], name: str = "metrics.jsonl") -> None:
        """Write these rows in place of all that are there."""
        self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def writing(name: str, folder: Path) -> Iterator[None]:
    """Tell what could not be written where, and how to resume.

    Raises:
      RunFolderError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{name} could not be written in {folder} ({error}). What was saved before is as it "
            "was: once there is room and leave to write, give the same command again to resume."
        ) from error


def read_bytes(path: Path) -> bytes:
    """What a file of a run folder holds.

    Raises:
      RunFolderError: if it cannot be read.
    """
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error}); it was left as it is.") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file of a run folder.

    Raises:
      RunFolderError: if the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove the run folder.") from error


def as_json(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def as_finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for what JSON has no number for: infinities and NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
