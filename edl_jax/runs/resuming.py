"""Where a run resumes: at the newest checkpoint whose rows are all there."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edl_jax.errors import RunFolderError
from edl_jax.runs.checkpoints import Checkpoints
from edl_jax.runs.folder import RunFolder

Row = dict[str, Any]


class RowLog(NamedTuple):
    """A file of rows that checkpoints count on.

    Attributes:
      name: the file.
      unit: what its rows are numbered by, such as `epoch`.
      due: from the step of a checkpoint, the numbers of the rows before it, in order.
    """

    name: str
    unit: str
    due: Callable[[int], list[int]]

    def check(self, row: Row) -> None:
        """Refuse, by a `KeyError` or `ValueError`, a row without a number."""
        if type(row[self.unit]) is not int:
            raise ValueError(f"its {self.unit} is {row[self.unit]!r}")

    def before(self, step: int, rows: Sequence[Row]) -> list[Row]:
        """The rows that belong before a checkpoint, missing and doubled ones as they are."""
        last = max(self.due(step), default=-1)
        return [row for row in rows if row[self.unit] <= last]


def resume(
    folder: RunFolder, checkpoints: Checkpoints, like: Any, logs: Sequence[RowLog], first_step: int
) -> tuple[int, Any, list[list[Row]]]:
    """Restore the newest checkpoint that is whole and whose rows are; drop the rows after it.

    They are run, and logged, again.

    Args:
      folder: the run folder.
      checkpoints: those in it.
      like: a pytree of the shapes and dtypes that were saved.
      logs: the files of rows; the first has one for each unit.
      first_step: that of a run's first checkpoint at the latest; its rows are written before it.

    Returns:
      The step, 0 for a new run, the pytree, and the rows of each log.

    Raises:
      RunFolderError: if there are checkpoints but none can be used, there are rows but no
        checkpoint, or something cannot be read or written. All is then left as it is.
    """
    rows = [folder.read_rows(log.name, check=log.check) for log in logs]

    def misfit(step: int) -> str:
        for log, own in zip(logs, rows, strict=True):
            found, due = [row[log.unit] for row in log.before(step, own)], log.due(step)
            if found != due:
                return (
                    f"it is a checkpoint of {log.unit} {len(logs[0].due(step))} but "
                    f"{log.name.split('.')[0]} of {len(found)} {log.unit}s before it are in "
                    f"{log.name}, or not in order; expected {len(due)}"
                )
        return ""

    if not checkpoints.steps():
        for log, own in zip(logs, rows, strict=True):
            if len(own) > len(log.due(first_step)):
                raise RunFolderError(
                    f"{folder.path} has {len(own)} rows in {log.name} but no checkpoint. Nothing "
                    "was changed: put the folder checkpoints back from a copy; or rename "
                    f"{folder.path} and give the same command to begin anew."
                )
    step, tree = checkpoints.restore_latest(like, misfit)
    for log, own in zip(logs, rows, strict=True):
        own[:] = log.before(step, own)
        folder.rewrite_rows(own, log.name)
    return step, tree, rows
