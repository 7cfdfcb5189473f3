"""Figures of the transfer study, drawn from the rows of its tables."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.pairs import Pairs
from edl_jax.studies.figures import Style, styles, subplots
from edl_jax.studies.results import Figure
from edl_jax.studies.transferability.distances import SUMMARIES, summarise_pairs
from edl_jax.studies.transferability.measures import MIXTURE
from edl_jax.studies.transferability.recording import Recording
from edl_jax.studies.transferability.rows import CONTROL, Row

_BAND = {"facecolor": "0.88", "edgecolor": "0.6", "hatch": "///", "linewidth": 0}
_CONTROL = {"color": "0.35", "ls": (0, (1, 1)), "linewidth": 1.5}
_MIXTURE = Style("black", "-", "o")
_DISTANCES = {
    "divergence": "Jensen-Shannon divergence, bits",
    "wasserstein/true_probability": "Wasserstein distance\nof true-class probabilities",
    "mmd": "squared maximum mean discrepancy",
    "accuracy": "accuracy of the classifier, share",
}
_RANKING = {
    "kendall_tau": "Kendall's tau-b",
    "violated_margins": "violated margins, share",
    "gradient_ratio": "gradient norm over cross-entropy's",
}


def plot_drift(summaries: Sequence[Row]) -> Figure:
    """Quartiles of each summary of the outputs over the epochs, with the mixture's as a band."""
    figure, axes = subplots(3, 2)
    for axis, (summary, label) in zip(axes.flat, SUMMARIES.items(), strict=False):
        mine = [row for row in summaries if row["summary"] == summary]
        (mixture,) = (row for row in mine if row["loss"] == f"synthetic: {MIXTURE}")
        axis.axhspan(mixture["lower"], mixture["upper"], label="synthetic mixture", **_BAND)
        axis.axhline(mixture["median"], **_CONTROL, label="its median")
        shifts = itertools.count()
        for (name, rows), style in zip(_of_losses(mine).items(), styles(), strict=False):
            median = np.asarray([row["median"] for row in rows])
            ends = np.asarray([(row["lower"], row["upper"]) for row in rows]).T
            epochs = np.asarray([row["epoch"] for row in rows])
            # Beside each other, or one would hide the other.
            axis.errorbar(
                epochs + 0.01 * max(epochs.max(), 1) * next(shifts),
                median,
                yerr=np.abs(ends - median),
                capsize=4,
                color=style.color,
                ls=style.dash,
                marker=style.marker,
                label=name,
            )
        _over_epochs(axis, label)
    axis = axes.flat[len(SUMMARIES)]
    correct = [row for row in summaries if row["summary"] == "rank"]
    for (name, rows), style in zip(_of_losses(correct, "held_out").items(), styles(), strict=False):
        _line(axis, rows, "correct", style, name)
    _over_epochs(axis, "held-out accuracy, share")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncol=4)
    return Figure(
        "drift",
        "Outputs as the loss sees them over training: medians with quartiles over the outputs of "
        "all seeds, beside the quartiles of the synthetic mixture (hatched) and its median "
        "(dotted). Last: accuracy on held-out images, mean ± sd over seeds.",
        figure,
    )


def plot_distances(distances: Sequence[Row]) -> Figure:
    """Distances between outputs and the mixture and each regime over the epochs."""
    losses = _of_losses(distances)
    figure, axes = subplots(len(_DISTANCES), len(losses))
    for line, (name, rows) in zip(axes, losses.items(), strict=True):
        for axis, (measure, label) in zip(line, _DISTANCES.items(), strict=True):
            _lines_of_references(axis, rows, distances, measure)
            _over_epochs(axis, label)
            axis.set_title(name)
    _legend_below(figure, axes)
    return Figure(
        "distances",
        "Distances of outputs as the loss sees them from the synthetic mixture and from each "
        "regime over training, mean ± sd over seeds. Dotted: fresh pairs of the mixture from the "
        "mixture, what chance alone does.",
        figure,
    )


def plot_coverage(distances: Sequence[Row]) -> Figure:
    """Share of outputs inside the support of the mixture and of each regime over the epochs."""
    losses = _of_losses(distances)
    figure, axes = subplots(len(losses))
    for axis, (name, rows) in zip(axes[0], losses.items(), strict=True):
        _lines_of_references(axis, rows, distances, "coverage")
        _over_epochs(axis, "coverage: share of outputs")
        axis.set(title=name, ylim=(-0.03, 1.05))
    _legend_below(figure, axes)
    return Figure(
        "coverage",
        "Share of the outputs, as the loss sees them, inside the support of the synthetic mixture "
        "and of each regime over training, mean ± sd over seeds. Dotted: fresh pairs of the "
        "mixture.",
        figure,
    )


def plot_density(recordings: Mapping[str, Sequence[Recording]], mixture: Pairs) -> Figure:
    """Where outputs lie at the first and the last recorded epoch, beside synthetic pairs."""
    from matplotlib.colors import LogNorm

    figure, axes = subplots(3, len(recordings), width=3.8, height=3.4)
    edges, drawn = np.linspace(0, 1, 31), None
    for line, (label, mine) in zip(axes, recordings.items(), strict=True):
        epochs = mine[0].epochs.tolist()
        panels = [("synthetic mixture", [mixture])]
        panels += [
            (f"{label} (n = {len(mine)}), epoch {epochs[at]}", [x.pairs("train", at) for x in mine])
            for at in (0, -1)
        ]
        for axis, (title, pairs) in zip(line, panels, strict=True):
            found = [summarise_pairs(x) for x in pairs]
            x, y = (
                np.concatenate([z[name] for z in found])
                for name in ("true_probability", "rival_probability")
            )
            share = np.histogram2d(x, y, [edges, edges])[0].T / len(x)
            drawn = axis.pcolormesh(
                edges,
                edges,
                np.ma.masked_equal(share, 0),
                cmap="gray_r",
                norm=LogNorm(1e-4, 1),
                rasterized=True,
            )
            axis.set(xlabel="true-class probability", ylabel="rival probability", title=title)
            axis.grid(False)
    figure.colorbar(drawn, ax=axes, label="share of outputs in a cell (none: white)")
    return Figure(
        "density",
        "True-class probability against that of the strongest rival: the synthetic mixture beside "
        "outputs as the loss sees them, at the first and the last recorded epoch, all seeds.",
        figure,
    )


def plot_ranking(ranking: Sequence[Row]) -> Figure:
    """Ranking metrics of the evolved loss on outputs over the epochs, beside synthetic pairs."""
    figure, axes = subplots(len(_RANKING))
    whole = [row for row in ranking if row["regime"] == "all"]
    (control,) = (row for row in whole if row["loss"] == CONTROL)
    for axis, (metric, label) in zip(axes[0], _RANKING.items(), strict=True):
        axis.axhline(control[metric], **_CONTROL, label=CONTROL)
        for (name, rows), style in zip(_of_losses(whole).items(), styles(), strict=False):
            _line(axis, rows, metric, style, name)
        _over_epochs(axis, label)
        axis.ticklabel_format(axis="y", useOffset=False)
    _legend_below(figure, axes)
    return Figure(
        "ranking",
        "The evolved loss's ranking and gradient on outputs as the loss that was trained with sees "
        "them, mean ± sd over seeds. Dotted: on fresh synthetic pairs of the mixture.",
        figure,
    )


def _of_losses(rows: Sequence[Row], part: str = "train") -> dict[str, list[Row]]:
    """Rows of a part, in the order of the epochs, by loss and number of trainings."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(f"{row['loss']} (n = {row['n']})", []).append(row)
    return found


def _lines_of_references(
    axis: Any, rows: Sequence[Row], distances: Sequence[Row], measure: str
) -> None:
    (control,) = (x for x in distances if x["loss"] == CONTROL and x["reference"] == MIXTURE)
    axis.axhline(control[measure], **_CONTROL, label=CONTROL)
    regimes = dict.fromkeys(row["reference"] for row in rows if row["reference"] != MIXTURE)
    for name, style in ((MIXTURE, _MIXTURE), *zip(regimes, styles(), strict=False)):
        _line(axis, [x for x in rows if x["reference"] == name], measure, style, name)


def _line(axis: Any, rows: Sequence[Row], measure: str, style: Style, label: str) -> None:
    values, deviations = (
        np.asarray([row[name] for row in rows], float) for name in (measure, f"{measure}_deviation")
    )
    axis.errorbar(
        [row["epoch"] for row in rows],
        values,
        yerr=np.nan_to_num(deviations),  # of one seed there is none
        capsize=3,
        linewidth=2.5 if style is _MIXTURE else 1.5,
        color=style.color,
        ls=style.dash,
        marker=style.marker,
        markersize=5,
        label=label,
    )


def _over_epochs(axis: Any, label: str) -> None:
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _legend_below(figure: Any, axes: Any) -> None:
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=min(5, len(labels)))
