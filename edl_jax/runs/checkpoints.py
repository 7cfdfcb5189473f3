"""The last checkpoints of a run, kept by Orbax.

Added to its `CheckpointManager`: a checkpoint outlives the machine before an older one is deleted;
a digest tells damaged arrays; and what cannot be read for now is not damaged.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from edl_jax.errors import RunFolderError, shortened
from edl_jax.runs.folder import read_bytes, reading, writing
from edl_jax.runs.preemption import interrupt_deferred
from edl_jax.runs.storage import TEMPORARY, make_folder, refused, sync_tree, write_atomically

_LOGGER = logging.getLogger(__name__)
_DELETED = f".deleted{TEMPORARY}"  # swept where a kill leaves it
# What damage makes us, Orbax and TensorStore raise.
_DAMAGE = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),  # of a lost part
    *(ValueError, AttributeError, LookupError, RecursionError, TypeError),
)
# How TensorStore's messages begin where the machine is at fault, and not the checkpoint.
_PASSING = re.compile(
    "UNKNOWN|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    "|UNAUTHENTICATED|UNAVAILABLE"
)


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints in one folder, of which the `keep` newest stay.

    Each records the length and digest of the row files, so that lost or changed rows are noticed.
    `files` says how many lines each may have before there is a checkpoint. What cannot be read or
    written is a `RunFolderError`.
    """

    def __init__(self, path: Path, *, keep: int, files: Mapping[Path, int] | None = None):
        self._path, self._keep, self._files = path.absolute(), keep, files or {}
        with reading(self._path):
            make_folder(self._path)
            for left in self._path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)

    def __exit__(self, *_: object) -> None:
        if "_manager" in vars(self):
            self._manager.close()

    def save(self, step: int, tree: Any) -> None:
        """Save a pytree's arrays after `step` steps."""
        leaves = _leaves(tree)
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves))
        rows = {path.name: read_bytes(path) for path in self._files}
        notes = {k: [len(x), hashlib.sha256(x).hexdigest()] for k, x in rows.items()}
        metrics = {"sha256": _digest(step, leaves), "notes": notes}
        try:
            # Orbax reports an interrupted save as a failed one.
            with interrupt_deferred(), orbax_silent():
                self._manager.save(step, args=args, metrics=metrics, force=True)
                sync_tree(self._path / str(step))
                for old in list(self._manager.all_steps())[: -self._keep]:
                    self._manager.delete(old)
                    shutil.rmtree(self._path / _DELETED)
        except MemoryError:
            raise
        except Exception as error:
            raise RunFolderError(
                f"the checkpoint of step {step} could not be written in {self._path} "
                f"({shortened(error)}). Earlier ones are as they were: make room, and give the "
                "same command again."
            ) from error

    def restore_latest(self, like: Any) -> tuple[int, Any]:
        """The newest checkpoint that is whole and whose files are: its step and pytree.

        Others are reported and set aside, and the files are cut to what it counts on; `(0, like)`
        and empty files where there is none. Where none can be used, or one cannot be read for now,
        all is left as it is. To be called before anything is saved.
        """
        newest, aside = None, {}
        rows = {path.name: read_bytes(path) for path in self._files}
        with reading(self._path):
            names = [x.name for x in self._path.iterdir() if x.name.isdecimal()]
        for step in sorted(map(int, names), reverse=True):
            path = self._path / str(step)
            try:
                _read(path)
                metrics = json.loads((path / "metrics" / "metrics").read_bytes())
                if newest is None and (why := _misfit(metrics["notes"], rows)):
                    aside[step] = "unused", why
                elif newest is None:  # older ones are only looked at
                    newest = step, _restored(path, metrics["sha256"], like), metrics["notes"]
            except (MemoryError, RunFolderError):
                raise
            except Exception as error:
                if not isinstance(error, _DAMAGE) or _PASSING.match(str(error)):
                    with reading(path):
                        raise OSError(shortened(error)) from error
                aside[step] = "damaged", shortened(error) or type(error).__name__
        if newest is None:
            self._check_new(rows, aside)
        for step, (what, why) in aside.items():
            self._set_aside(step, what, why)
        step, tree, notes = newest or (0, like, {})
        for path in self._files:
            size, _ = notes.get(path.name, (0, ""))
            with writing(path.name, path.parent):
                write_atomically(path, rows[path.name][:size])
        return step, tree

    def _check_new(self, rows: Mapping[str, bytes], aside: Mapping[int, tuple[str, str]]) -> None:
        """Refuse to begin anew where there was a run."""
        lines = {path: rows[path.name].count(b"\n") for path in self._files}
        if aside:
            step, (what, why) = next(iter(aside.items()))
            why = f"no checkpoint can be used; that of step {step} is {what} ({why})"
        elif any(lines[path] > most for path, most in self._files.items()):
            why = f"there are {max(lines.values())} rows but no checkpoint"
        else:
            return
        raise RunFolderError(
            f"{self._path}: {why}. Everything was left as it is: put back what is missing from a "
            f"copy, and remove what is there twice; or rename {self._path.parent} and give the "
            "same command to begin anew."
        )

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: 0.0,  # without one, Orbax writes no metrics
            # Not in the background: the next steps take over the buffers.
            enable_async_checkpointing=False,
            create=False,  # Orbax creates none for a part of the processes; it is there already
            todelete_subdir=_DELETED,
            multiprocessing_options=_processes(),
        )
        return ocp.CheckpointManager(self._path, options=options)

    def _set_aside(self, step: int, what: str, why: str) -> None:
        names = (f"{what}-checkpoint-{step}-{number}" for number in itertools.count())
        aside = next(x for x in map(self._path.parent.joinpath, names) if not os.path.lexists(x))
        with refused(
            f"{self._path / str(step)} is {what} ({why}), and cannot be renamed",
            "Rename it to resume from the one before it.",
        ):
            (self._path / str(step)).rename(aside)
        _LOGGER.warning(
            "The checkpoint of step %d in %s is %s (%s). It was moved to %s, and is not used.",
            *(step, self._path, what, why, aside.name),
        )


def _read(path: Path) -> None:
    """Read all that is there: an `OSError` here, and not one of TensorStore's errors later."""
    if path.is_dir():
        for each in path.iterdir():
            _read(each)
    elif path.is_file():
        path.read_bytes()
    else:  # such as a pipe, whose other end Orbax would wait for
        raise ValueError(f"{path.name} is no file")


def _restored(path: Path, digest: str, like: Any) -> Any:
    """The arrays of a checkpoint, in the form of `like`."""
    options = _processes()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    with orbax_silent(), ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        leaves = _leaves(reader.restore(path / "state", args=ocp.args.StandardRestore()))
    if digest != _digest(int(path.name), leaves):
        raise ValueError("its arrays do not have the digest that was written with them")
    if [(x.dtype, x.shape) for x in leaves] != [(x.dtype, x.shape) for x in _leaves(like)]:
        raise RunFolderError(
            f"the checkpoint {path} holds other arrays than this version of edl_jax keeps: resume "
            "with the versions in environment.json, or begin in another folder."
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _misfit(notes: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """Why a checkpoint with these notes cannot be used; nothing if it can."""
    for name, data in files.items():
        size, digest = notes[name]
        if hashlib.sha256(data[:size]).hexdigest() != digest:
            return f"the first {size} bytes of {name} are not those that it was saved with"
    return ""


def _digest(step: int, leaves: list[np.ndarray]) -> str:
    digest = hashlib.sha256(str(step).encode())
    for x in leaves:
        digest.update(f"{x.dtype}{x.shape}".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def _processes() -> ocp.options.MultiprocessingOptions:
    """Orbax's options: the first process alone reads and writes, and must not be waited for."""
    alone = {"primary_host": 0, "active_processes": {0}} if jax.process_count() > 1 else {}
    return ocp.options.MultiprocessingOptions(**alone)


@contextlib.contextmanager
def orbax_silent() -> Iterator[None]:
    """Keep Orbax's threads from printing tracebacks: the caller reports what they raise.

    After a failure they stay silent for good: some end later, and find their loop closed.
    """
    loggers, show = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook

    def is_of_others(what: Any) -> bool:
        if isinstance(what, logging.LogRecord):
            file = what.pathname
        else:
            frames = traceback.extract_tb(what.exc_traceback)
            file = frames[-1].filename if frames else ""
        return {"asyncio", "orbax"}.isdisjoint(Path(file).parts)

    sys.unraisablehook = lambda what: show(what) if is_of_others(what) else None
    for logger in loggers:
        logger.addFilter(is_of_others)
    yield  # and nothing is put back after a failure
    sys.unraisablehook = show
    for logger in loggers:
        logger.removeFilter(is_of_others)
