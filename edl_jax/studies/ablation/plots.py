"""Figures of an ablation: a panel for each setting, a series for each mutation (or other axis)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edl_jax.studies.ablation.axes import Cell, name_of
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.effects import (
    FINAL,
    Cells,
    series_axis,
    settings_of,
    times_of,
    values_of,
)
from edl_jax.studies.figures import Style, panels, styles
from edl_jax.studies.results import Figure
from edl_jax.studies.statistics import describe

_OBJECTIVE = "objective: share of the asked margins missing"

Draw = Callable[[Any, int, str, Cell, Style], None]


def ablation_figures(config: AblateConfig, cells: Cells) -> list[Figure]:
    """All figures; none of a threshold that nobody reached.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    reached = [
        _reached(cells, threshold)
        for threshold in config.thresholds
        if any(times_of(row, threshold)[1].any() for row in cells.values())
    ]
    return [_curves(cells), *reached, _finals(cells)]


def _curves(cells: Cells) -> Figure:
    def draw(axis: Any, index: int, name: str, cell: Cell, style: Style) -> None:
        curves = np.ma.masked_invalid(np.asarray(cells[cell]["curves"], float))
        generations, n = np.asarray(cells[cell]["generations"]), len(curves)
        mean, error = curves.mean(axis=0), curves.std(axis=0, ddof=1) / curves.count(axis=0) ** 0.5
        look = {"color": style.color, "ls": style.dash, "marker": style.marker}
        # Each series has its markers elsewhere, or one would hide the other.
        every = (index % 6, 6)
        label = f"{name}, n = {n}"
        axis.plot(generations, mean, **look, markevery=every, markersize=4, label=label)
        axis.fill_between(generations, mean - error, mean + error, color=style.color, alpha=0.15)
        axis.set(xscale="log", yscale="log", xlabel="generation", ylabel=_OBJECTIVE)

    return Figure(
        "objective",
        "Objective of each generation's leader on held-out pairs: mean over the seeds and its "
        "standard error (band).",
        _panels(cells, draw),
    )


def _reached(cells: Cells, threshold: float) -> Figure:
    def draw(axis: Any, index: int, name: str, cell: Cell, style: Style) -> None:
        times, reached = times_of(cells[cell], threshold)
        # All seeds are watched to the end, so Kaplan-Meier's estimate is the share that got there.
        steps = np.concatenate([[0], np.sort(times[reached]), [cells[cell]["evaluations"]]])
        share = np.concatenate([np.arange(reached.sum() + 1), [reached.sum()]]) / len(times)
        look = {"color": style.color, "ls": style.dash, "marker": style.marker}
        label = f"{name}, n = {len(times)}"
        every = (index % 5, 5)
        axis.step(steps, share, where="post", **look, markevery=every, markersize=4, label=label)
        axis.set(
            ylim=(-0.02, 1.02),
            xlabel="evaluations of networks",
            ylabel=f"share of seeds that reached {threshold:g}",
        )

    return Figure(
        f"reached_{threshold:g}",
        f"Share of the seeds whose leader had reached an objective of {threshold:g} on held-out "
        "pairs (Kaplan-Meier).",
        _panels(cells, draw),
    )


def _finals(cells: Cells) -> Figure:
    def draw(axis: Any, index: int, name: str, cell: Cell, style: Style) -> None:
        values = values_of(cells[cell], FINAL)
        values = values[np.isfinite(values)]
        spread = np.linspace(-0.25, 0.25, len(values))
        look = {"color": style.color, "alpha": 0.5, "markersize": 4}
        label = f"{name}, n = {len(values)}"
        axis.plot(index + spread, values, style.marker, **look, label=label)
        if len(values):
            found = describe(values)
            ends = [[found.mean - found.low], [found.high - found.mean]]
            axis.errorbar(index, found.mean, ends, color="black", marker="_", ms=14, capsize=5)
        axis.set(xlim=(-0.6, index + 0.6), ylabel=f"final {_OBJECTIVE}")
        names = [*(text.get_text() for text in axis.get_xticklabels()[:index]), name]
        axis.set_xticks(range(index + 1), names, rotation=30, ha="right")

    return Figure(
        "final",
        "Objective of the winner on held-out pairs that nothing was chosen on: each seed, and the "
        "mean with its 95 % interval (black).",
        _panels(cells, draw),
    )


def _panels(cells: Cells, draw: Draw) -> Any:
    settings, apart = settings_of(cells), series_axis(cells).field
    figure, axes = panels(len(settings), width=6.4, height=4.6)
    for axis, (setting, group) in zip(axes, settings.items(), strict=True):
        for index, (cell, style) in enumerate(zip(group, styles(), strict=False)):
            draw(axis, index, name_of(getattr(cell, apart)), cell, style)
        axis.set_title(setting)
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(group) > 4 else {}
        axis.legend(fontsize="small", **place)
    return figure
