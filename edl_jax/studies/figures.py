"""How all figures look and are written, and those of single runs; matplotlib loads when used."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.errors import EDLError, shortened
from edl_jax.runs.folder import writing
from edl_jax.runs.preemption import interrupt_deferred
from edl_jax.runs.storage import open_atomically, write_atomically

PAGE = "README.md"

# Colours of Okabe and Ito (2008), https://jfly.uni-koeln.de/color/; with dashes and markers, lines
# differ for any colour vision and in grey, 77 of them.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")


def line_styles() -> list[dict[str, Any]]:
    """Looks of the lines of a plot, in their order; the cycle of every axis of `panels`."""
    return [
        {"color": _COLORS[i % 7], "linestyle": _DASHES[i % 7], "marker": _MARKERS[i % 11]}
        for i in range(77)
    ]


def check_libraries(*names: str) -> None:
    """Refuse to begin a study whose end would fail.

    Raises:
      EDLError: if matplotlib, or one of the modules named, is not installed, or matplotlib refuses
        its own settings.
    """
    for name in ("matplotlib", *names):
        if importlib.util.find_spec(name) is None:
            extra = "studies" if names else "plots"
            raise EDLError(f'this needs {name}: pip install "edl_jax[{extra}]"')
    try:
        importlib.import_module("matplotlib")
    except ValueError as error:  # of MPLBACKEND
        raise EDLError(
            f"this needs matplotlib, which cannot be loaded ({shortened(error)}): unset MPLBACKEND."
        ) from error


def panels(
    count: int, *, columns: int = 3, width: float = 5.2, height: float = 3.8
) -> tuple[Any, list[Any]]:
    """A figure with so many axes, row by row, of a width and height in inches each.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    check_libraries()
    from cycler import cycler
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for surplus in axes[count:]:
        surplus.remove()
    looks = line_styles()
    cycle = {name: [look[name] for look in looks] for name in looks[0]}
    for axis in axes[:count]:
        axis.set_prop_cycle(cycler(**cycle))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG; the same figure, the same bytes.

    Raises:
      OSError: if it cannot be written.
    """
    with interrupt_deferred(), open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=150)


def write_page(
    folder: Path,
    title: str,
    parts: Sequence[str],
    figures: Mapping[str, tuple[str, Any]],
    notes: Sequence[str] = (),
) -> None:
    """Write figures and, last, `README.md`, which shows them and all the rest.

    Args:
      folder: the run folder.
      title: one line.
      parts: Markdown, such as tables, of which the first comes before the figures.
      figures: by file name, without ending, the caption and a `matplotlib.figure.Figure`.
      notes: sentences that say how it was done.

    Raises:
      RunFolderError: if something cannot be written.
    """
    images = [f"![{caption}]({name}.png)\n\n{caption}" for name, (caption, _) in figures.items()]
    page = [f"# {title}", *parts[:1], *images, *parts[1:]]
    if notes:
        page += ["## How it was done", "\n".join(f"- {' '.join(x.split())}" for x in notes)]
    with writing("the page or a figure", folder):
        for name, (_, figure) in figures.items():
            save(figure, folder / f"{name}.png")
        write_atomically(folder / PAGE, ("\n\n".join(page) + "\n").encode())


def short_names(losses: Sequence[str]) -> dict[str, str]:
    """Short names of losses: a file's without folder and ending, unless two would be the same."""
    short = {loss: Path(loss).stem if loss.endswith(".safetensors") else loss for loss in losses}
    return short if len(set(short.values())) == len(short) else {loss: loss for loss in losses}


def legend_below(figure: Any, axis: Any) -> None:
    """One legend for all panels, of the lines of one of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def plot_curves(
    cells: Any, line: str, others: Sequence[str], values: str, xlabel: str, ylabel: str
) -> Any:
    """Mean curves over the seeds, a panel for each setting.

    Args:
      cells: from `edl_jax.studies.tables.frame`.
      line: the column whose values are the lines of a panel.
      others: the columns that tell panels apart.
      values: the column of the curves, equally long lists of numbers or None.
      xlabel: what the points are.
      ylabel: what the numbers are.
    """
    groups = list(cells.groupby(list(others), sort=False)) if others else [((), cells)]
    figure, axes = panels(len(groups))
    for axis, (setting, group) in zip(axes, groups, strict=True):
        for name, mine in group.groupby(line, sort=False):
            longest = max(map(len, mine[values]))
            curves = [[*x, *x[-1:] * (longest - len(x))] or [None] for x in mine[values]]
            mean = np.ma.masked_invalid(np.asarray(curves, float)).mean(axis=0)
            axis.plot(
                1 + np.arange(len(mean)), mean, markersize=4, label=f"{name}, n = {len(mine)}"
            )
        named = zip(others, setting, strict=True)
        title = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in named)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    legend_below(figure, axes[0])
    return figure


def plot_evolution(history: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]) -> Any:
    """Fitness, held-out pairwise accuracy and step size over the generations.

    Args:
      history: `PretrainResult.history`.
      held_out: `PretrainResult.held_out`.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, (left, middle, right) = panels(3, width=4.2)
    generations = np.arange(1, len(history["best_fitness"]) + 1)
    for name in ("best", "mean"):
        left.plot(generations, history[f"{name}_fitness"], marker="", label=name)
    left.set(yscale="log", title="Fitness on fresh pairs (lower is better)")
    left.legend()
    middle.plot(1 + held_out["generation"], held_out["pairwise_accuracy"], markersize=4)
    middle.set(title="Pairwise accuracy of the best, held-out pairs")
    right.plot(generations, history["step_size"], marker="")
    right.set(yscale="log", title="Mutation step size (standard deviation)")
    for axis in (left, middle, right):
        axis.set_xlabel("generation")
    return figure


def plot_training(history: Sequence[Mapping[str, Any]]) -> Any:
    """The loss and accuracy on training images, and the accuracy on others, over the epochs.

    Args:
      history: `TrainResult.history`.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, (left, right) = panels(2)
    epochs = [row["epoch"] for row in history]
    split = {"test": "test", "val": "validation"}[history[-1]["evaluated_on"]]
    for axis, name, unit, label in (
        (left, "train_loss", 1, "training"),
        (right, "train_accuracy", 100, "training, while it learns"),
        (right, "accuracy", 100, split),
    ):
        values = [unit * row[name] for row in history]
        axis.plot(epochs, values, markersize=4, label=f"{label}: {values[-1]:.4g} at the end")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch")
        axis.legend()
    left.set(ylabel="mean loss over the epoch", title="Loss")
    right.set(ylabel="accuracy, %", title="Accuracy")
    return figure
