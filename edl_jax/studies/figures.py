"""How all figures look and are written, and those of single runs; matplotlib loads when used."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.errors import EDLError, shortened
from edl_jax.runs.folder import writing
from edl_jax.runs.preemption import interrupt_deferred
from edl_jax.runs.storage import open_atomically, write_atomically

PAGE = "README.md"

# Colors of Okabe and Ito (2008), https://jfly.uni-koeln.de/color/; with dashes and markers, lines
# differ for any color vision and in gray, 28 of them.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")


def line_styles() -> Any:
    """The looks of the lines of a plot, in their order."""
    from cycler import cycler

    dashes = cycler(linestyle=("-", "--", "-.", ":"), marker=("o", "s", "^", "D"))
    return 4 * cycler(color=_COLORS) + 7 * dashes


def check_libraries(*names: str, extra: str = "studies") -> None:
    """Refuse to begin what needs modules of an extra, or else matplotlib, and cannot have them."""
    for name in names or ("matplotlib",):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise EDLError(f'this needs {name}: pip install "edl_jax[{extra}]"') from error
        except ValueError as error:  # of MPLBACKEND
            raise EDLError(
                f"this needs {name}, which cannot be loaded ({shortened(error)}): unset MPLBACKEND."
            ) from error


def panels(count: int, width: float = 5.2) -> tuple[Any, list[Any]]:
    """A figure with so many axes, three in a row, of a width in inches each."""
    check_libraries(extra="plots")
    from matplotlib.figure import Figure

    columns, rows = min(3, count), -(-count // 3)
    figure = Figure(figsize=(width * columns, 3.8 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for surplus in axes[count:]:
        surplus.remove()
    for axis in axes[:count]:
        axis.set_prop_cycle(line_styles())
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG; the same figure, the same bytes."""
    with interrupt_deferred(), open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=150)


def write_page(
    folder: Path,
    title: str,
    parts: Sequence[str],
    figures: Mapping[str, tuple[str, Any]],
    notes: Sequence[str] = (),
) -> None:
    """Write figures, and, last, the README.md that shows them after the first of the parts."""
    images = [f"![{caption}]({name}.png)\n\n{caption}" for name, (caption, _) in figures.items()]
    page = [f"# {title}", *parts[:1], *images, *parts[1:]]
    if notes:
        page += ["## How it was done", "\n".join(f"- {note}" for note in notes)]
    with writing("the page or a figure", folder):
        for name, (_, figure) in figures.items():
            save(figure, folder / f"{name}.png")
        write_atomically(folder / PAGE, ("\n\n".join(page) + "\n").encode())


def short_names(losses: Sequence[str]) -> dict[str, str]:
    """Short names of losses: a file's without folder and ending, unless two would be the same."""
    short = {loss: Path(loss).stem if loss.endswith(".safetensors") else loss for loss in losses}
    return short if len(set(short.values())) == len(short) else {loss: loss for loss in losses}


def plot_curves(
    cells: Any, line: str, by: Sequence[str], values: str, xlabel: str, ylabel: str, x: Any = None
) -> Any:
    """Mean curves over the seeds, at `x` or 1, 2, ...: lines by one column, panels `by` others."""
    groups = list(cells.groupby(list(by), sort=False)) if by else [((), cells)]
    figure, axes = panels(len(groups))
    looks = dict(zip(dict.fromkeys(cells[line]), line_styles()(), strict=False))
    lines = {}  # of all panels, in which a line looks the same, by label
    for axis, (setting, group) in zip(axes, groups, strict=True):
        for name, rows in group.groupby(line, sort=False):
            longest = max(map(len, rows[values]))
            curves = [[*y, *y[-1:] * (longest - len(y))] or [None] for y in rows[values]]
            mean = np.ma.masked_invalid(np.asarray(curves, float)).mean(axis=0)
            at = range(1, 1 + len(mean)) if x is None else x
            (drawn,) = axis.plot(at, mean, markersize=4, **looks[name])
            lines.setdefault(f"{name}, n = {len(rows)}", drawn)
        named = zip(by, setting, strict=True)
        title = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in named)
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)
    return figure


def plot_evolution(history: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]) -> Any:
    """Fitness, held-out pairwise accuracy and step size, of a `PretrainResult`."""
    figure, (left, middle, right) = panels(3, width=4.2)
    generations = np.arange(1, len(history["best_fitness"]) + 1)
    left.plot(generations, history["best_fitness"], marker="", label="best")
    left.plot(generations, history["mean_fitness"], marker="", label="mean")
    left.legend()
    left.set(yscale="log", title="Fitness on fresh pairs (lower is better)")
    at = held_out["generation"]  # the rest is not there if no loss was finite
    middle.plot(1 + at, held_out.get("pairwise_accuracy", np.nan * at), markersize=4)
    middle.set(title="Pairwise accuracy of the best, held-out pairs")
    right.plot(generations, history["step_size"], marker="")
    right.set(yscale="log", title="Mutation step size (standard deviation)")
    figure.supxlabel("generation")
    return figure


def plot_training(history: Sequence[Mapping[str, Any]]) -> Any:
    """The loss and accuracies over the epochs of a `TrainResult.history`."""
    figure, (left, right) = panels(2)
    split = {"test": "test", "val": "validation"}[history[-1]["evaluated_on"]]
    for axis, name, unit, label in (
        (left, "train_loss", 1, "training"),
        (right, "train_accuracy", 100, "training, while it learns"),
        (right, "accuracy", 100, split),
    ):
        values = [unit * row[name] for row in history]
        label = f"{label}: {values[-1]:.4g} at the end"
        axis.plot([row["epoch"] for row in history], values, markersize=4, label=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    left.set(xlabel="epoch", ylabel="mean loss over the epoch", title="Loss")
    right.set(xlabel="epoch", ylabel="accuracy, %", title="Accuracy")
    return figure
