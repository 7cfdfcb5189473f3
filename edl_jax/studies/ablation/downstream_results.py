"""Which metrics of pretraining go with accuracy: rank correlations and scatter plots."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from edl_jax.studies.figures import panels, styles
from edl_jax.studies.results import Column, Figure, Table, interval, number, p_value
from edl_jax.studies.statistics import holm, rank_correlation

Rows = Sequence[Mapping[str, Any]]

# The first is the paper's own measure of how good a loss is.
METRICS = {
    "pairwise_accuracy": "pairwise accuracy",
    "kendall_tau": "Kendall's tau-b",
    "spearman_rho": "Spearman's rho",
    "violated_margins": "share of margins violated",
    "objective": "objective (margins violated, by amount)",
    "descent_rate": "share of pairs where descent lowers severity",
    "gradient_ratio/0.0-0.1": "relative gradient norm at p_y below 0.1",
    "gradient_ratio/0.9-1.0": "relative gradient norm at p_y above 0.9",
    "gradient_deviation": "deviation from cross-entropy's gradient norms",
}
_MEASURES = {"spearman": "spearmanr", "kendall": "kendalltau"}  # in scipy.stats


def metric_values(rows: Rows, metric: str) -> np.ndarray:
    """A metric of each loss, NaN where it is not defined.

    `gradient_deviation` is the mean, over ten bins of the true class's probability, of the absolute
    logarithm of the gradient's norm over cross-entropy's: 0 for cross-entropy itself.
    """
    if metric != "gradient_deviation":
        return np.asarray([row["metrics"].get(metric) for row in rows], float)
    return np.asarray([_deviation(row["metrics"]) for row in rows])


def _deviation(metrics: Mapping[str, float]) -> float:
    bins = [
        value
        for name, value in metrics.items()
        if name.startswith("gradient_ratio/0.") and value is not None and value > 0
    ]
    return float(np.abs(np.log(bins)).mean()) if bins else math.nan


def downstream_tables(rows: Rows) -> tuple[list[dict[str, Any]], list[Table]]:
    """Correlations with accuracy, and the two tables.

    Returns:
      A row for each metric; and the tables of these rows, and of the losses.
    """
    accuracies = np.asarray([row["accuracy"] for row in rows])
    correlations = []
    for metric in METRICS:
        values = metric_values(rows, metric)
        defined = np.isfinite(values)
        row: dict[str, Any] = {"metric": metric, "n": int(defined.sum())}
        for name, function in _MEASURES.items():
            method = getattr(scipy.stats, function)
            found = rank_correlation(values[defined], accuracies[defined], method=method)
            row |= {
                name: found.value,
                f"{name}_low": found.low,
                f"{name}_high": found.high,
                f"{name}_p": found.p,
            }
        correlations.append(row)
    for name in _MEASURES:
        corrected = holm([row[f"{name}_p"] for row in correlations])
        for row, p in zip(correlations, corrected, strict=True):
            row[f"{name}_p_holm"] = p
    return correlations, [_correlation_table(correlations), _loss_table(rows)]


def _correlation_table(correlations: Rows) -> Table:
    columns = [
        Column("metric on held-out pairs", lambda row: METRICS[row["metric"]], False),
        Column("n", lambda row: str(row["n"])),
    ]
    for name in _MEASURES:
        columns += [
            Column(f"{name.title()} with accuracy", number(name, "+.2f")),
            Column("95 % interval", interval(f"{name}_low", f"{name}_high", "+.2f")),
            Column("p, Holm", p_value(f"{name}_p_holm")),
        ]
    title = (
        "Rank correlations of pretraining's metrics with validation accuracy (percentile bootstrap)"
    )
    return Table("correlations", title, correlations, columns)


def _loss_table(rows: Rows) -> Table:
    plain = [
        {
            **{name: row[name] for name in ("severity", "seed", "generation")},
            "accuracy": 100 * row["accuracy"],
            "diverged": row["diverged"],
            **{metric: float(metric_values([row], metric)[0]) for metric in METRICS},
        }
        for row in rows
    ]
    columns = [
        Column("evolved by severity", lambda row: row["severity"], False),
        Column("seed", lambda row: str(row["seed"])),
        Column("generations", lambda row: str(row["generation"])),
        Column("validation accuracy, %", number("accuracy", ".1f")),
        Column("diverged", lambda row: "yes" if row["diverged"] else "no", False),
        *(Column(heading, number(metric, ".3f")) for metric, heading in METRICS.items()),
    ]
    return Table("losses", "The losses trained with", plain, columns)


def downstream_figures(rows: Rows, correlations: Rows) -> list[Figure]:
    """A scatter plot of each metric against accuracy.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, axes = panels(len(METRICS), width=4.6, height=3.6)
    severities = list(dict.fromkeys(row["severity"] for row in rows))
    for axis, found in zip(axes, correlations, strict=True):
        for style, severity in zip(styles(), severities, strict=False):
            mine = [row for row in rows if row["severity"] == severity]
            axis.plot(
                metric_values(mine, found["metric"]),
                [100 * row["accuracy"] for row in mine],
                style.marker,
                color=style.color,
                alpha=0.7,
                label=f"evolved by {severity}, n = {len(mine)}",
            )
        rho = found["spearman"]
        axis.set(
            xlabel=METRICS[found["metric"]],
            ylabel="validation accuracy, %",
            title="" if math.isnan(rho) else f"Spearman {rho:+.2f}",
        )
        axis.legend(fontsize="small")
    caption = (
        "Metrics of each loss on held-out synthetic pairs against the validation accuracy of a "
        "classifier trained with it."
    )
    return [Figure("downstream", caption, figure)]
