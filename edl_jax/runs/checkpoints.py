"""Checkpoints of a run, kept by Orbax: the last few and the best.

Orbax's `CheckpointManager` writes a checkpoint under a temporary name, renames it, lists them and
knows the best. What it does not do is added here: a checkpoint outlives the machine before an
older one is deleted; a digest tells damaged arrays, of which Orbax keeps no checksum; and what
cannot be read for now is not damaged.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from edl_jax.errors import RunFolderError, shortened
from edl_jax.runs.preemption import interrupt_deferred
from edl_jax.runs.storage import TEMPORARY, make_folder, sync_tree

_LOGGER = logging.getLogger(__name__)
_STEP = re.compile("0|[1-9][0-9]*")
_DELETED = f".deleted{TEMPORARY}"  # swept where a kill leaves it
# What damage makes us, Orbax and TensorStore raise.
_DAMAGE = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),  # of a lost part
    *(ValueError, AttributeError, IndexError, KeyError, RecursionError, TypeError),
)
# How TensorStore's messages begin where the machine is at fault, and not the checkpoint.
_PASSING = re.compile(
    "UNKNOWN|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    "|UNAUTHENTICATED|UNAVAILABLE"
)


class Checkpoints:
    """The checkpoints in one folder; a context manager.

    The `keep` newest and the one of the best score are kept. What cannot be read or written is a
    `RunFolderError`, and is left as it is.
    """

    def __init__(self, path: Path, *, keep: int):
        self._path, self._keep = path.absolute(), keep
        try:
            make_folder(self._path)
            for left in self._path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot be opened ({error}).") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if "_manager" in vars(self):
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, damaged ones too, in order."""
        try:
            return sorted(int(x.name) for x in self._path.iterdir() if _STEP.fullmatch(x.name))
        except OSError as error:
            raise RunFolderError(
                f"{self._path} cannot be read ({error}). Everything was left as it is: give the "
                "same command again when it can."
            ) from error

    def save(self, step: int, tree: Any, *, score: float, notes: Mapping[str, Any]) -> None:
        """Save the arrays of a pytree after `step` steps, then delete those not to be kept.

        Of the best checkpoint the score is largest. The notes, JSON data, are kept beside it.
        """
        import orbax.checkpoint as ocp

        leaves = _leaves(tree)
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves))
        score = float(score) if math.isfinite(score) else -math.inf
        metrics = {"sha256": _digest(step, leaves), "score": score, "notes": notes}
        try:
            # Orbax gives an interrupted save out as one that failed.
            with interrupt_deferred(), orbax_silent():
                self._manager.save(step, args=args, metrics=metrics, force=True)
                sync_tree(self._path / str(step))
                best = self._manager.best_step()
                for old in list(self._manager.all_steps())[: -self._keep]:
                    if old != best:
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

    def restore_latest(
        self, like: Any, misfit: Callable[[Mapping[str, Any]], str] = lambda notes: ""
    ) -> tuple[int, Any, Mapping[str, Any]]:
        """The newest whole checkpoint: its step, pytree and notes; `(0, like, {})` without one.

        A damaged one is reported, set aside under another name, and the one before it is used; so
        is one of whose notes `misfit` says why it cannot be. Where there are some but none can be
        used, where one holds other arrays than `like` or cannot be read for now, all are left as
        they are. To be called before anything is saved.
        """
        found, aside = None, {}
        for step in (steps := self.steps()[::-1]):
            try:
                metrics = self._metrics(step)
                if found is not None:
                    continue  # it is only compared with others
                if why := misfit(metrics["notes"]):
                    aside[step] = "unused", why
                else:
                    found = step, self._restored(step, metrics, like), metrics["notes"]
            except (MemoryError, RunFolderError):
                raise
            except Exception as error:
                if not isinstance(error, _DAMAGE) or _PASSING.match(str(error)):
                    raise RunFolderError(
                        f"the checkpoint of step {step} in {self._path} cannot be read "
                        f"({shortened(error)}). It was left as it is: give the same command again "
                        "when it can."
                    ) from error
                aside[step] = "damaged", shortened(error) or type(error).__name__
        if steps and found is None:
            what, why = aside[steps[0]]
            raise RunFolderError(
                f"no checkpoint in {self._path} can be used; that of step {steps[0]} is {what} "
                f"({why}). Everything was left as it is: put back what is missing from a copy, and "
                f"remove what is there twice; or rename {self._path.parent} and give the same "
                "command to begin anew."
            )
        for step, (what, why) in aside.items():
            self._set_aside(step, what, why)
        return found or (0, like, {})

    def _restored(self, step: int, metrics: Mapping[str, Any], like: Any) -> Any:
        import orbax.checkpoint as ocp

        options = _processes()
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
        with (
            orbax_silent(),
            ocp.Checkpointer(handler, multiprocessing_options=options) as reader,
        ):
            path = self._path / str(step) / "state"
            leaves = _leaves(reader.restore(path, args=ocp.args.StandardRestore()))
        if metrics["sha256"] != _digest(step, leaves):
            raise ValueError("its arrays do not have the digest that was written with them")
        if [(x.dtype, x.shape) for x in leaves] != [(x.dtype, x.shape) for x in _leaves(like)]:
            raise RunFolderError(
                f"the checkpoint of step {step} in {self._path} holds other arrays than this "
                "version of edl_jax keeps: resume with the versions in environment.json, or begin "
                "in another folder."
            )
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _metrics(self, step: int) -> dict[str, Any]:
        """What was saved beside a checkpoint's arrays; its files can be read, and are files."""

        def fail(error: OSError) -> NoReturn:
            raise error

        path = self._path / str(step)
        for folder, _, names in os.walk(path, onerror=fail):
            for file in (Path(folder) / name for name in names):
                if not stat.S_ISREG(file.stat().st_mode):  # Orbax would wait for a pipe's other end
                    raise ValueError(f"{file.name} is no file")
                with file.open("rb") as stream:  # an OSError here, not TensorStore's errors later
                    while stream.read(1 << 24):
                        pass
        metrics = json.loads((path / "metrics" / "metrics").read_bytes())
        return {**metrics, "score": float(metrics["score"])}

    @functools.cached_property
    def _manager(self) -> Any:
        import orbax.checkpoint as ocp  # slow to import, and only runs with a folder need it

        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics["score"],
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
        try:
            (self._path / str(step)).rename(aside)
        except OSError as error:
            raise RunFolderError(
                f"the checkpoint of step {step} in {self._path} is {what} ({why}) and cannot be "
                f"renamed ({error}): rename it to resume from the one before it."
            ) from error
        _LOGGER.warning(
            "The checkpoint of step %d in %s is %s (%s). It was moved to %s, and is not used.",
            *(step, self._path, what, why, aside.name),
        )


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _digest(step: int, leaves: list[np.ndarray]) -> str:
    found = hashlib.sha256(str(step).encode())
    for x in leaves:
        found.update(f"{x.dtype}{x.shape}".encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def _processes() -> Any:
    """Orbax's options: the first process alone reads and writes, and must not be waited for."""
    import orbax.checkpoint as ocp

    alone = {"primary_host": 0, "active_processes": {0}} if jax.process_count() > 1 else {}
    return ocp.options.MultiprocessingOptions(**alone)


@contextlib.contextmanager
def orbax_silent() -> Iterator[None]:
    """Keep Orbax's threads from printing tracebacks: the caller reports what they raise.

    After a failure they are kept silent for good: some end later, and find the loop closed in which
    they were to read or write.
    """
    loggers, show = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        frames = [frame for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
        if not (frames and {"asyncio", "orbax"} & {*Path(frames[-1].f_code.co_filename).parts}):
            show(unraisable)

    sys.unraisablehook = show_others
    for logger in loggers:
        logger.addFilter(_is_of_others)
    yield  # and nothing is put back after a failure
    sys.unraisablehook = show
    for logger in loggers:
        logger.removeFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    return not {"asyncio", "orbax"} & {*Path(record.pathname).parts}
