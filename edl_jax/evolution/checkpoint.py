"""Checkpoints of an evolution, kept by Orbax."""

from pathlib import Path
from typing import Any

import jax

from edl_jax.strategy.chaotic_es import State


class Checkpoints:
    """The states of the last generations of a run, written atomically by Orbax.

    Use as a context manager.
    """

    def __init__(self, path: Path, *, keep: int = 2):
        """Open the checkpoints in the folder `path`, keeping the last `keep`."""
        import orbax.checkpoint as ocp  # slow to import, and only runs with a folder need it

        self._args = ocp.args
        # Not in the background: the next chunk of generations takes over the state's buffers.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(path.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, generation: int, state: State) -> None:
        """Save the state after `generation` generations."""
        self._manager.save(generation, args=self._args.StandardSave(state))

    def restore_latest(self, like: State) -> tuple[int, State]:
        """The newest generation and its state; `(0, like)` where there is none."""
        generation = self._manager.latest_step()
        if generation is None:
            return 0, like
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        state: Any = self._manager.restore(generation, args=self._args.StandardRestore(abstract))
        return generation, state
