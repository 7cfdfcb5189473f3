"""Checkpoints of a run, kept by Orbax: the last few and the best.

A checkpoint holds the arrays of a pytree and their digest. It is written under a temporary name and
renamed, so a kill or a full disk leaves the earlier ones as they were; these are deleted only once
all of the new one would outlive the machine; and it is compared with its digest when read, so a
damaged one is never taken for a good one.
"""

import itertools
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from edl_jax.errors import RunFolderError, shortened
from edl_jax.runs.checkpoint_parts import (
    by_number,
    described,
    digest,
    digest_of_record,
    files_of,
    read,
)
from edl_jax.runs.folder import RunFolder
from edl_jax.runs.orbax_noise import orbax_silent
from edl_jax.runs.preemption import interrupt_deferred
from edl_jax.runs.storage import make_folder, remove_folder, sync_tree

_LOGGER = logging.getLogger(__name__)
_STEP = re.compile("0|[1-9][0-9]*")
# How TensorStore's messages begin where the machine is at fault, and not the checkpoint.
_PASSING = re.compile(
    "UNKNOWN|ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    "|UNAUTHENTICATED|UNAVAILABLE"
)


# What damage makes us, Orbax and TensorStore raise.
_DAMAGE = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),  # of a lost part
    *(ValueError, AttributeError, IndexError, KeyError, RecursionError, TypeError),
)


class Checkpoints:
    """The checkpoints in one folder. Use as a context manager."""

    def __init__(self, path: Path, *, keep: int):
        """Open the folder, keeping the `keep` newest checkpoints and the one of the best score.

        Raises:
          RunFolderError: if the folder cannot be opened or written.
        """
        self._path, self._keep = path.absolute(), keep
        self._scores: dict[int, float] = {}
        try:
            make_folder(self._path)
            # Orbax would clean up in the background, and not wait for it to end.
            for left in self._path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)
            with orbax_silent():
                self._manager = self._open()
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot be opened ({error}).") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, damaged ones too, in order.

        Raises:
          RunFolderError: if the folder cannot be read now.
        """
        try:
            return sorted(int(x.name) for x in self._path.iterdir() if _STEP.fullmatch(x.name))
        except OSError as error:
            raise RunFolderError(
                f"{self._path} cannot be read ({error}). Everything was left as it is: give the "
                "same command again when it can."
            ) from error

    def save(self, step: int, tree: Any, *, score: float) -> None:
        """Save the arrays of a pytree after `step` steps, then delete those not to be kept.

        Args:
          step: how many steps are done.
          tree: a pytree of arrays.
          score: which checkpoint is best; larger is better.

        Raises:
          RunFolderError: if it cannot be written; the earlier checkpoints are as they were.
        """
        import orbax.checkpoint as ocp

        arrays = by_number(tree)
        record = {
            "arrays": described(arrays),
            "sha256": digest(step, arrays),
            "score": float(score) if math.isfinite(score) else None,
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave({**record, "of_record": digest_of_record(record)}),
        )
        try:
            # Orbax gives an interrupted save out as one that failed.
            with interrupt_deferred(), orbax_silent():
                self._manager.save(step, args=args, force=True)
                sync_tree(self._path / str(step))
                self._delete_surplus()
        except MemoryError:
            raise
        except Exception as error:
            raise RunFolderError(
                f"the checkpoint of step {step} could not be written in {self._path} "
                f"({shortened(error)}). Earlier ones are as they were: make room, and give the "
                "same command again."
            ) from error

    def restore_latest(
        self, like: Any, misfit: Callable[[int], str] = lambda step: ""
    ) -> tuple[int, Any]:
        """The newest whole checkpoint: its step, and the pytree; `(0, like)` where there is none.

        A damaged one is reported, set aside under another name, and the one before it is used; so
        is one that does not fit.

        Args:
          like: a pytree of the shapes and dtypes that were saved.
          misfit: says why the checkpoint of a step cannot be used; nothing if it can.

        Raises:
          RunFolderError: if there are checkpoints but none can be used, if one holds arrays of
            other shapes or dtypes than `like`, or if the machine cannot read it now. All are then
            left as they are.
        """
        with orbax_silent():
            return self._restore_latest(like, misfit)

    def _restore_latest(self, like: Any, misfit: Callable[[int], str]) -> tuple[int, Any]:
        found, aside = None, {}
        for step in (steps := self.steps()[::-1]):
            try:
                if found is not None:
                    self._record(step)
                elif why := misfit(step):
                    aside[step] = "unused", why
                else:
                    found = step, self._restored(step, like)
            except (ImportError, MemoryError, RunFolderError):
                raise
            except Exception as error:
                if not isinstance(error, _DAMAGE) or _PASSING.match(str(error)):
                    # Too many open files, say, or a disk that is away: it may be sound.
                    raise RunFolderError(
                        f"the checkpoint of step {step} in {self._path} cannot be read "
                        f"({shortened(error)}). It was left as it is: give the same command again "
                        "when it can."
                    ) from error
                aside[step] = "damaged", shortened(error) or type(error).__name__
        if steps and found is None:
            self._refuse(steps[0], *aside[steps[0]])
        for step, (what, why) in aside.items():
            self._set_aside(step, what, why)
        if aside:
            self._manager.reload()
        return found or (0, like)

    def _restored(self, step: int, like: Any) -> Any:
        import orbax.checkpoint as ocp

        expected = by_number(like)
        for file in files_of(self._path / str(step)):
            read(file)  # what cannot be read now raises an OSError here, not TensorStore's errors
        record = self._record(step)
        if record["arrays"] != described(expected):
            raise RunFolderError(
                f"the checkpoint of step {step} in {self._path} holds other arrays than this "
                "version of edl_jax keeps: resume with the versions in environment.json, or begin "
                "in another folder."
            )
        abstract = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in expected.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        restored = self._manager.restore(step, args=args)["state"]
        arrays = {key: np.asarray(x) for key, x in restored.items()}
        if record["sha256"] != digest(step, arrays):
            raise ValueError("its arrays do not have the digest that was written with them")
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[key] for key in expected])

    def _record(self, step: int) -> dict[str, Any]:
        """What is written beside a checkpoint's arrays; its score is remembered."""
        import orbax.checkpoint as ocp

        files_of(self._path / str(step))
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = dict(self._manager.restore(step, args=args)["record"])
        of_record = record.pop("of_record", None)  # version 0.1.0 wrote none
        if of_record not in (None, digest_of_record(record)):
            raise ValueError("its record does not have the digest that was written with it")
        score = record.get("score")
        self._scores[step] = -math.inf if score is None else float(score)
        return record

    def _delete_surplus(self) -> None:
        steps = self.steps()
        for step in steps:
            if step not in self._scores:
                self._record(step)
        best = max(steps, key=lambda step: (self._scores[step], step))
        for step in steps[: -self._keep]:
            if step != best:
                remove_folder(self._path / str(step))

    def _open(self) -> Any:
        import orbax.checkpoint as ocp  # slow to import, and only runs with a folder need it

        options = ocp.CheckpointManagerOptions(
            # Not in the background: the next steps take over the buffers.
            enable_async_checkpointing=False,
            create=False,  # Orbax creates none for a part of the processes; it is there already
            # The first process alone writes; the others must not be waited for.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}
            )
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        return ocp.CheckpointManager(self._path, options=options)

    def _refuse(self, step: int, what: str, why: str) -> NoReturn:
        raise RunFolderError(
            f"no checkpoint in {self._path} can be used; that of step {step} is {what} ({why}). "
            "Everything was left as it is: put back what is missing from a copy, and remove what "
            f"is there twice; or rename {self._path.parent} and give the same command to begin "
            "anew."
        )

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


def open_checkpoints(folder: RunFolder | None, keep: int) -> Checkpoints | None:
    """The checkpoints of a run folder, if there is one."""
    return None if folder is None else Checkpoints(folder.path / "checkpoints", keep=keep)
