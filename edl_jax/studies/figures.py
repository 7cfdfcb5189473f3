"""How all figures look and how they are written; needs matplotlib when used, not when imported."""

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edl_jax.errors import EDLError
from edl_jax.runs.preemption import interrupt_deferred
from edl_jax.runs.storage import open_atomically


class Style(NamedTuple):
    """How one series is drawn: told apart by any colour vision, and in grey by dash and marker."""

    color: str
    dash: Any
    marker: str


# Colours of Okabe and Ito (2008), https://jfly.uni-koeln.de/color/
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")


def styles() -> Iterator[Style]:
    """Styles without end; the first 77 differ, and neighbours in all three ways."""
    looks = zip(_COLORS, _DASHES, strict=True)
    for (color, dash), marker in zip(itertools.cycle(looks), itertools.cycle(_MARKERS)):
        yield Style(color, dash, marker)


def labels_of(losses: Sequence[str]) -> dict[str, str]:
    """Short names of losses: a file's without folder and ending, unless two would be the same."""
    short = {loss: Path(loss).stem if loss.endswith(".safetensors") else loss for loss in losses}
    return short if len(set(short.values())) == len(short) else {loss: loss for loss in losses}


def check_matplotlib() -> None:
    """Refuse to begin where no plot can be drawn.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EDLError('plots need matplotlib: pip install "edl_jax[plots]"')


def subplots(columns: int = 1, rows: int = 1, *, width: float = 5.2, height: float = 3.8) -> Any:
    """A figure and its axes, `[rows, columns]`; `width` and `height` of each in inches.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def panels(count: int, *, width: float = 5.2, height: float = 3.8) -> tuple[Any, list[Any]]:
    """A figure with so many axes, three in a row, each of a size as for `subplots`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    columns = min(3, count)
    figure, axes = subplots(columns, -(-count // columns), width=width, height=height)
    for surplus in axes.flat[count:]:
        surplus.remove()
    return figure, list(axes.flat[:count])


def save(figure: Any, path: Path) -> None:
    """Write a figure as its file's ending says, `.png` or `.svg`; the same figure, the same bytes.

    Raises:
      OSError: if it cannot be written.
    """
    import matplotlib

    # Without a date, and with names of parts that do not change from one time to the next.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    salted = matplotlib.rc_context({"svg.hashsalt": path.stem})
    with interrupt_deferred(), salted, open_atomically(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
