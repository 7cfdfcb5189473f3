"""Run folders: configuration, versions, seed, metrics and results of one run, side by side."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from edl_jax.errors import RunFolderError
from edl_jax.storage import write_atomically

NOT_INSTALLED = "not installed"  # in place of a version
_LIBRARIES = ("edl_jax", "jax", "jaxlib", "flax", "optax", "evosax", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def version(library: str) -> str:
    """Version of a library; `NOT_INSTALLED` if it is not there."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def commit() -> str | None:
    """The last commit that changed this package, None where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None


def default_run_dir(command: str) -> Path:
    """`runs/COMMAND-DATE-TIME`, under the working directory."""
    # To the microsecond: a script may begin several runs at once.
    return Path("runs") / f"{command}-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"


def keep_compiled(parent: Path) -> None:
    """Keep compiled programs in `.jax_cache` under a folder, unless JAX was told where to.

    In a folder for each kind of processor: XLA's programs for a CPU run on its like only.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore
        return
    about = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        flags = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x[:5] == "flags"]
        about += flags[0] if flags else ""
    kind = hashlib.sha256(about.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(parent / ".jax_cache" / kind))


class RunFolder:
    """A folder that belongs to one configuration.

    Holds `config.json`, `environment.json`, `metrics.jsonl` and whatever the run adds.
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
                raise RunFolderError(
                    f"{path} belongs to a run with another configuration: "
                    f"{_difference(found, config)}. Choose another folder, or the same settings."
                )
        else:
            device = jax.devices()[0]
            environment = {
                "versions": versions(),
                "commit": commit(),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "backend": device.platform,
                "device": device.device_kind,
                "device_count": jax.device_count(),
                "machine": platform.machine(),
            }
            self.write_json("environment.json", environment)
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
        with writing(name, self.path), (self.path / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())  # what a checkpoint counts on must outlive the machine

    def read_rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The rows written so far; a last line cut short by a kill is dropped.

        Raises:
          RunFolderError: if another line is no JSON object, or the file cannot be read.
        """
        path = self.path / name
        lines = read_bytes(path).splitlines() if path.exists() else []
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it holds {row!r}")
            except ValueError as error:
                if number == len(lines):
                    break
                raise RunFolderError(
                    f"line {number} of {len(lines)} of {path} is damaged ({error}). The file was "
                    "left as it is: remove that line to go on without it."
                ) from error
            rows.append(row)
        return rows

    def resume_rows(
        self,
        is_kept: Callable[[dict[str, Any]], bool] = lambda row: True,
        name: str = "metrics.jsonl",
    ) -> list[dict[str, Any]]:
        """The rows to go on from; the others, and a line cut short, are removed from the file."""
        rows = [row for row in self.read_rows(name) if is_kept(row)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        self.write_text(name, lines)
        return rows


@contextlib.contextmanager
def writing(name: str, folder: Path) -> Iterator[None]:
    """Tell what could not be written where, and how to go on.

    Raises:
      RunFolderError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{name} could not be written in {folder} ({error}). What was saved before is as it "
            "was: once there is room and leave to write, give the same command again to go on."
        ) from error


def read_bytes(path: Path) -> bytes:
    """What a file of a run folder holds.

    Raises:
      RunFolderError: if it cannot be read.
    """
    try:
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
    except ValueError as error:
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


def _difference(old: Any, new: Any, name: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(
            _difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in keys
        )
    return f"{name} is {old!r} there and {new!r} here"
