"""Figures of a comparison: accuracy over epochs, differences by seed, learning rates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.studies.comparison.config import SPLITS, Setting
from edl_jax.studies.comparison.rows import by_setting, percent_by_loss
from edl_jax.studies.comparison.runs import COMPARISON
from edl_jax.studies.figures import labels_of, panels, styles

Row = Mapping[str, Any]
FEW = 6  # losses: of more, the bands would hide one another, and the legend goes outside


def plot_accuracy(cells: Sequence[Row]) -> Any:
    """Accuracy over the epochs, the mean over the seeds of each loss; of few, the deviation too.

    Where a training had diverged, its accuracy is that of guessing.

    Args:
      cells: `CompareResult.cells`.

    Returns:
      A `matplotlib.figure.Figure`, a panel for each setting.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    groups = by_setting([cell for cell in cells if cell["phase"] == COMPARISON])
    figure, axes = panels(len(groups), height=max(3.8, 0.25 * _most_losses(groups)))
    length = max(len(cell["epochs"]) for cell in cells)
    on = {row["evaluated_on"] for cell in cells for row in cell["epochs"]}
    splits = " and ".join(SPLITS[split] for split in sorted(on))  # none where all diverged at once
    for axis, (setting, group) in zip(axes, groups.items(), strict=True):
        names = list(dict.fromkeys(cell["loss"] for cell in group))
        labels = labels_of(names)
        for style, name in zip(styles(), names, strict=False):
            curves = 100 * np.asarray([_curve(c, length) for c in group if c["loss"] == name])
            mean, spread = curves.mean(0), curves.std(0, ddof=min(1, len(curves) - 1))
            epochs, label = 1 + np.arange(length), f"{labels[name]}, n = {len(curves)}"
            axis.plot(
                epochs, mean, ls=style.dash, color=style.color, marker=style.marker,
                markersize=4, label=label,
            )  # fmt: skip
            if len(names) <= FEW:
                band = mean - spread, mean + spread
                axis.fill_between(epochs, *band, color=style.color, alpha=0.15)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="epoch", ylabel=f"{splits} accuracy, %".strip(), title=str(setting))
    _legend(figure, axes)
    return figure


def plot_differences(cells: Sequence[Row], rows: Sequence[Row], split: str = "test") -> Any:
    """Differences of accuracy to the first loss: each seed's, their mean and its interval.

    Args:
      cells: `CompareResult.cells`.
      rows: `CompareResult.rows`.
      split: what the images that losses are compared on are called.

    Returns:
      A `matplotlib.figure.Figure`, a panel for each setting.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    groups, found = by_setting(rows), by_setting([c for c in cells if c["phase"] == COMPARISON])
    figure, axes = panels(len(groups), height=1.6 + 0.32 * (_most_losses(groups) - 1))
    names = list(dict.fromkeys(row["loss"] for row in rows))
    labels = labels_of(names)
    for axis, (setting, (_, *others)) in zip(axes, groups.items(), strict=True):
        values = percent_by_loss(found[setting])
        reach = [np.abs(values[row["loss"]] - values[names[0]]).max() for row in others]
        label = f"difference of {split} accuracy\nto {labels[names[0]]}, points"
        # A loss that does not learn would hide the differences of the others.
        if max(reach) > 10 * max(1, min(reach)):
            axis.set_xscale("symlog", linthresh=1)
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            label += "\n(logarithmic beyond ±1)"
        for height, row in enumerate(others):
            differences = values[row["loss"]] - values[names[0]]
            axis.plot(
                differences, np.full(len(differences), height), ls="", marker="o", markersize=5,
                markerfacecolor="none", color="0.45", label="one seed",
            )  # fmt: skip
            middle, low, high = (row[f"difference_{x}"] for x in ("mean", "low", "high"))
            axis.plot([middle], [height + 0.22], ls="", marker="D", color="black", label="mean")
            axis.plot(
                [low, high], [height + 0.22] * 2, ls="-", marker="|", color="black", linewidth=1.5,
                label="its 95 % interval",
            )  # fmt: skip
        axis.axvline(0, color="black", linewidth=1, ls=":")
        ticks = [f"{labels[row['loss']]}, n = {row['n']}" for row in others]
        axis.set_yticks(range(len(others)), ticks)
        axis.set_ylim(len(others) - 0.4, -0.6)
        axis.set(xlabel=label, title=str(setting))
    _legend(figure, axes, below=True)
    return figure


def plot_learning_rates(rows: Sequence[Row]) -> Any:
    """Validation accuracy over the learning rate; the one that each loss took is filled.

    Args:
      rows: of the tuning's table.

    Returns:
      A `matplotlib.figure.Figure`, a panel for each setting.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    groups = by_setting(rows)
    figure, axes = panels(len(groups), height=max(3.8, 0.25 * _most_losses(groups)))
    for axis, (setting, group) in zip(axes, groups.items(), strict=True):
        names = list(dict.fromkeys(row["loss"] for row in group))
        labels = labels_of(names)
        for style, name in zip(styles(), names, strict=False):
            mine = sorted(
                (row for row in group if row["loss"] == name), key=lambda row: row["learning_rate"]
            )
            rates = [row["learning_rate"] for row in mine]
            means = [row["val_accuracy_mean"] for row in mine]
            filled = [i for i, row in enumerate(mine) if row["chosen"]]
            look = {"color": style.color, "marker": style.marker}
            label = f"{labels[name]}, n = {mine[0]['n']}"
            axis.plot(rates, means, ls=style.dash, markerfacecolor="white", label=label, **look)
            axis.plot(rates, means, ls="", markevery=filled, markersize=9, **look)
        axis.set_xscale("log")
        ticks = sorted({row["learning_rate"] for row in group})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="peak learning rate", ylabel="validation accuracy, %", title=str(setting))
    _legend(figure, axes)
    return figure


def _most_losses(groups: Mapping[Setting, Sequence[Row]]) -> int:
    return max(len({row["loss"] for row in group}) for group in groups.values())


def _curve(cell: Row, length: int) -> list[float]:
    found = [row["accuracy"] for row in cell["epochs"]]
    return found + [cell["chance"]] * (length - len(found))


def _legend(figure: Any, axes: Any, *, below: bool = False) -> None:
    """One legend for all panels: inside a single one if it is short, else outside."""
    handles, labels = axes[0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    if below:
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown))
    elif len(axes) == 1 and len(shown) <= FEW:
        axes[0].legend()
    else:
        figure.legend(shown.values(), shown.keys(), loc="outside right center")
