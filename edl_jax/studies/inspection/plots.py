"""Figures of one loss beside cross-entropy and focal: curves, and maps of predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edl_jax.studies.figures import styles, subplots
from edl_jax.studies.inspection.loss_shape import VANISHING, Response, path_probabilities

_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


class Quantity(NamedTuple):
    """What a row of maps shows: its label, the colours, and how to find it in a response."""

    label: str
    colors: str
    field: str


# Colour maps that get lighter all the way, so that they read the same in grey.
_QUANTITIES = (
    Quantity("loss", "viridis", "losses"),
    Quantity("norm of the logit gradient", "cividis", "norms"),
)


def plot_curves(curves: Mapping[int, Mapping[str, Response]]) -> Any:
    """Loss, pull on the true class and gradient beside cross-entropy's, against its probability.

    Args:
      curves: by class count, then by the name of a loss and its path, along
        `path_probabilities()`.

    Returns:
      A `matplotlib.figure.Figure` with a column for each class count.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, axes = subplots(len(curves), 3, width=4.4, height=3.1)
    own = path_probabilities()
    names = dict.fromkeys(name for responses in curves.values() for name in responses)
    looks = dict(zip(names, styles(), strict=False))
    for column, (num_classes, responses) in zip(axes.T, curves.items(), strict=True):
        for name, response in responses.items():
            style = looks[name]
            look = {"color": style.color, "ls": style.dash, "label": name, "lw": 1.8}
            rows = (response.losses, -response.own, response.norms / response.reference)
            for axis, values in zip(column, rows, strict=True):
                axis.plot(own, values, **look)
        column[0].set_title(f"{num_classes} classes")
        column[1].axhline(0, color="black", lw=0.8)
        low, high = column[2].get_ylim()
        column[2].set(yscale="log", ylim=(max(VANISHING / 3, min(low, 0.3)), max(high, 3.0)))
        column[2].axhspan(0, VANISHING, color="black", alpha=0.12, lw=0)
        column[2].set_xlabel("probability of the true class")
        for axis in column:
            axis.set_xscale("logit")
            axis.set(xlim=(own[0], own[-1]), xticks=_TICKS, xticklabels=[f"{x:g}" for x in _TICKS])
            axis.set_xticks([], minor=True)
            axis.tick_params(axis="x", labelsize=8)
    for axis, label in zip(
        axes[:, 0],
        ("loss", "pull on the true class's logit", "gradient's norm ÷ cross-entropy's"),
        strict=True,
    ):
        axis.set_ylabel(label)
    axes[0, -1].legend(fontsize=8)  # the last class count has all curves
    return figure


def plot_rival_maps(
    own: np.ndarray, rival: np.ndarray, responses: Mapping[str, Response], num_classes: int
) -> Any:
    """Loss and gradient over the probabilities of the true class and its strongest rival.

    Args:
      own: the true class's, `[rows, columns]`, from `rival_grid`.
      rival: the rival's, likewise.
      responses: by the loss's name, `[rows * columns]` each; one column of maps for each.
      num_classes: class count of the predictions.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, axes = subplots(len(responses), 2, width=3.5, height=3.2)
    for row, quantity in zip(axes, _QUANTITIES, strict=True):
        levels, filled = _levels(responses, quantity.field), None
        for axis, (name, response) in zip(row, responses.items(), strict=True):
            values = getattr(response, quantity.field).reshape(own.shape)
            filled = axis.contourf(own, rival, values, levels, cmap=quantity.colors, extend="both")
            axis.contour(own, rival, values, levels, colors="black", linewidths=0.4)
            axis.plot([0, 0.5], [0, 0.5], color="black", ls=":", lw=1)  # the argmax changes here
            axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=name)
            axis.grid(False)
        row[0].set_ylabel("of the strongest rival")
        figure.colorbar(filled, ax=list(row), label=quantity.label, shrink=0.85)
    for axis in axes[-1]:
        axis.set_xlabel("probability of the true class")
    figure.suptitle(f"{num_classes} classes, the rest spread evenly")
    return figure


def plot_simplex(positions: np.ndarray, responses: Mapping[str, Response]) -> Any:
    """Loss and gradient over all predictions of three classes.

    Args:
      positions: `[n, 2]`, from `simplex_grid`.
      responses: by the loss's name, `[n]` each; one column of triangles for each.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, axes = subplots(len(responses), 2, width=3.5, height=3.2)
    x, y = positions.T
    for row, quantity in zip(axes, _QUANTITIES, strict=True):
        levels, filled = _levels(responses, quantity.field), None
        for axis, (name, response) in zip(row, responses.items(), strict=True):
            values = getattr(response, quantity.field)
            filled = axis.tricontourf(x, y, values, levels, cmap=quantity.colors, extend="both")
            axis.tricontour(x, y, values, levels, colors="black", linewidths=0.4)
            height = 3**0.5 / 2
            axis.plot([0, 0.5, 1, 0], [0, height, 0, 0], color="black", lw=1)
            axis.text(0.5, height + 0.03, "true class", ha="center", fontsize=9)
            for end, rival in ((0, "rival A"), (1, "rival B")):
                axis.text(end, -0.09, rival, ha="center", fontsize=9)
            axis.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.14, 0.95), title=name)
            axis.axis("off")
        figure.colorbar(filled, ax=list(row), label=quantity.label, shrink=0.85)
    return figure


def _levels(responses: Mapping[str, Response], field: str) -> Sequence[float]:
    """One scale for all losses; it ends one range beyond the references' where the first is wild.

    The first response is that of the loss to be shown, the others are the references.
    """
    from matplotlib.ticker import MaxNLocator

    shown, *references = (getattr(response, field) for response in responses.values())
    known = np.concatenate(references)
    low, high = known.min(), known.max()
    span = high - low
    low = max(low - span, min(low, shown.min()))
    high = min(high + span, max(high, shown.max()))
    return MaxNLocator(12).tick_values(low, high)
