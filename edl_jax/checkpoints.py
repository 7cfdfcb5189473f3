"""Checkpoints of a run, kept by Orbax: the last few and the best.

A checkpoint holds the arrays of a pytree and their digest. It is written under a temporary name and
renamed, so a kill or a full disk leaves the earlier ones as they were; and it is compared with its
digest when read, so a damaged one is never taken for a good one.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edl_jax.errors import RunFolderError
from edl_jax.preemption import interrupt_deferred
from edl_jax.runs import RunFolder

_LOGGER = logging.getLogger(__name__)
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # of a lost part


class Checkpoints:
    """The checkpoints in one folder. Use as a context manager."""

    def __init__(self, path: Path, *, keep: int):
        """Open the folder, keeping the `keep` newest checkpoints and the one of the best score.

        One whose score cannot be read is reported and set aside: Orbax reads all scores at once.

        Raises:
          RunFolderError: if the folder cannot be opened or written.
        """
        self._path, self._keep = path.absolute(), keep
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            for step in [int(x.name) for x in self._path.iterdir() if x.name.isdigit()]:
                self._check_score(step)
            self._manager = self._open()
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot be opened ({error}).") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, step: int, tree: Any, *, score: float) -> None:
        """Save the arrays of a pytree after `step` steps.

        Args:
          step: how many steps are done.
          tree: a pytree of arrays.
          score: which checkpoint is best; larger is better.

        Raises:
          RunFolderError: if it cannot be written; the earlier checkpoints are as they were.
        """
        import orbax.checkpoint as ocp

        arrays = _by_number(tree)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave(
                {"arrays": _described(arrays), "sha256": _digest(step, arrays)}
            ),
        )
        try:
            # Orbax gives an interrupted save out as one that failed.
            with interrupt_deferred():
                self._manager.save(step, args=args, metrics={"score": float(score)}, force=True)
        except Exception as error:
            raise RunFolderError(
                f"the checkpoint of step {step} could not be written in {self._path} ({error}). "
                "Earlier ones are as they were: make room, and give the same command again."
            ) from error

    def restore_latest(self, like: Any) -> tuple[int, Any]:
        """The newest whole checkpoint: its step, and the pytree; `(0, like)` where there is none.

        A damaged one is reported, set aside under another name, and the one before it is used.

        Args:
          like: a pytree of the shapes and dtypes that were saved.

        Raises:
          RunFolderError: if a checkpoint holds arrays of other shapes or dtypes than `like`, or
            the machine cannot read it now.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, self._restored(step, like)
            except (ImportError, MemoryError, RunFolderError):
                raise  # no damage
            except Exception as error:
                if isinstance(error, OSError) and not isinstance(error, _MISSING):
                    # Too many open files, say, or a disk that is away: it may be sound.
                    raise RunFolderError(
                        f"the checkpoint of step {step} in {self._path} cannot be read ({error}). "
                        "It was left as it is: give the same command again when it can."
                    ) from error
                self._set_aside(step, error)
                self._manager.reload()
        return 0, like

    def _restored(self, step: int, like: Any) -> Any:
        import orbax.checkpoint as ocp

        expected = _by_number(like)
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._manager.restore(step, args=args)["record"]
        if record["arrays"] != _described(expected):
            raise RunFolderError(
                f"the checkpoint of step {step} in {self._path} holds other arrays than this "
                "version of edl_jax keeps: go on with the versions in environment.json, or begin "
                "in another folder."
            )
        abstract = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in expected.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        restored = self._manager.restore(step, args=args)["state"]
        arrays = {key: np.asarray(x) for key, x in restored.items()}
        if record["sha256"] != _digest(step, arrays):
            raise ValueError("its arrays do not have the digest that was written with them")
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[key] for key in expected])

    def _check_score(self, step: int) -> None:
        try:
            json.loads((self._path / str(step) / "metrics" / "metrics").read_text())["score"]
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            self._set_aside(step, error)

    def _open(self) -> Any:
        import orbax.checkpoint as ocp  # slow to import, and only runs with a folder need it
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        options = ocp.CheckpointManagerOptions(
            # Not in the background: the next steps take over the buffers.
            enable_async_checkpointing=False,
            create=False,  # Orbax creates none for a part of the processes; it is there already
            cleanup_tmp_directories=True,
            best_fn=lambda metrics: metrics["score"],  # or Orbax would keep no metrics
            preservation_policy=policy.AnyPreservationPolicy(
                [
                    policy.LatestN(self._keep),
                    policy.BestN(
                        get_metric_fn=lambda metrics: metrics["score"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            # The first process alone writes; the others must not be waited for.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}
            )
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        return ocp.CheckpointManager(self._path, options=options)

    def _set_aside(self, step: int, error: Exception) -> None:
        number = sum(1 for _ in self._path.parent.glob(f"damaged-checkpoint-{step}*"))
        aside = self._path.parent / f"damaged-checkpoint-{step}-{number}"
        (self._path / str(step)).rename(aside)
        _LOGGER.warning(
            "The checkpoint of step %d in %s is damaged (%s). It was moved to %s, and is not used.",
            step,
            self._path,
            str(error).splitlines()[0] if str(error) else type(error).__name__,
            aside.name,
        )


def open_checkpoints(folder: RunFolder | None, keep: int) -> Checkpoints | None:
    """The checkpoints of a run folder, if there is one."""
    return None if folder is None else Checkpoints(folder.path / "checkpoints", keep=keep)


def _by_number(tree: Any) -> dict[str, np.ndarray]:
    return {f"{index:04}": np.asarray(x) for index, x in enumerate(jax.tree.leaves(tree))}


def _described(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {key: f"{x.dtype}{list(x.shape)}" for key, x in arrays.items()}


def _digest(step: int, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(str(step).encode())
    for key, x in sorted(arrays.items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
