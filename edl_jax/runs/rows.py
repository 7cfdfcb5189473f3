"""The files of rows that checkpoints count on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edl_jax.runs.folder import Row, RunFolder, as_finite, read_bytes, writing
from edl_jax.runs.storage import append

Notes = Mapping[str, Any]


class MetricWriter(Protocol):
    """Where rows of metrics go; as CLU's writer of that name, narrower."""

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Write rows of a file; they are there, whole, when this returns."""
        ...


class JsonLines:
    """The rows of a run, in files of JSON lines: a `MetricWriter`.

    A checkpoint keeps `notes`: how long each file was, and a digest of it. So what was lost, cut,
    doubled or changed is noticed, and what came after the checkpoint is dropped.
    """

    def __init__(self, folder: RunFolder, names: Sequence[str]):
        """Read what is there of some files; raises a `RunFolderError` if that cannot be done."""
        self._folder = folder
        paths = {name: folder.path / name for name in names}
        self._found = {x: read_bytes(path) if path.exists() else b"" for x, path in paths.items()}

    def lines(self) -> list[int]:
        """How many lines are in each file."""
        return [data.count(b"\n") for data in self._found.values()]

    def misfit(self, notes: Notes) -> str:
        """Why a checkpoint with these notes cannot be used; nothing if it can."""
        for name, data in self._found.items():
            size, digest = notes[name]
            if hashlib.sha256(data[:size]).hexdigest() != digest:
                return f"the first {size} bytes of {name} are not those that it was saved with"
        return ""

    def take_up(self, notes: Notes) -> list[list[Row]]:
        """The rows of each file that belong before a checkpoint; the others are removed."""
        sizes = {name: notes.get(name, (0,))[0] for name in self._found}
        kept = {name: self._found[name][:size] for name, size in sizes.items()}
        for name, data in kept.items():
            self._folder.write_text(name, data.decode())
        self._sizes, self._digests = sizes, {x: hashlib.sha256(data) for x, data in kept.items()}
        return [[json.loads(line) for line in data.splitlines()] for data in kept.values()]

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Append rows, which outlive the machine when this returns."""
        data = "".join(json.dumps(as_finite(row)) + "\n" for row in rows).encode()
        with writing(name, self._folder.path):
            append(self._folder.path / name, data)
        self._sizes[name] += len(data)
        self._digests[name].update(data)

    def notes(self) -> dict[str, Any]:
        """What a checkpoint is to keep of the files as they are now."""
        return {name: [self._sizes[name], x.hexdigest()] for name, x in self._digests.items()}
