"""The searches for losses that come before a comparison: one a method and setting."""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edl_jax.data.datasets import load_dataset
from edl_jax.losses.by_name import resolve_method
from edl_jax.losses.searched import SearchedLoss
from edl_jax.runs.folder import Row, RunFolder
from edl_jax.studies.cells import Cell
from edl_jax.studies.sweep import with_fields


def with_found_losses(
    stack: contextlib.ExitStack,
    base: Cell,
    cells: Sequence[Mapping[str, Any]],
    field: str,
    folder: RunFolder | None,
    *,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[Row]]:
    """The cells, each method that searches replaced by what it finds; and a row for each search.

    A loss is searched for at the learning rate of `base`. What is found lies in the run folder, or
    without one until the stack is closed.
    """
    found_cells, rows = [], []
    for index, cell in enumerate(cells):
        train: Any = with_fields(base, cell).train
        method = resolve_method(train.loss)
        if isinstance(method, SearchedLoss):
            from edl_jax.training.search import search  # loads matplotlib, by evosax's problems

            home = Path(folder.path if folder else stack.enter_context(_temporary()))
            place = home / "searches" / f"{index}"
            found = search(method, train, load_dataset(train.data), place, progress=progress)
            rows.append({**cell, "found": found.pop("loss"), **found})
            cell = {**cell, field: rows[-1]["found"]}
        found_cells.append(dict(cell))
    return found_cells, rows


def _temporary() -> Any:
    return tempfile.TemporaryDirectory(prefix="edl_jax_")
