"""Tables of an ablation, and the paragraph that reads them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.pairs import REGIMES
from edl_jax.studies.ablation.axes import AXES, Cell, name_of
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.downstream_results import downstream_figures, downstream_tables
from edl_jax.studies.ablation.effects import (
    AREA,
    FINAL,
    Cells,
    compare_cells,
    times_of,
    values_of,
)
from edl_jax.studies.ablation.finding import finding
from edl_jax.studies.ablation.plots import ablation_figures
from edl_jax.studies.ablation.protocol import protocol
from edl_jax.studies.results import (
    Column,
    Row,
    StudyResults,
    Table,
    interval,
    mean_and_deviation,
    number,
    p_value,
)
from edl_jax.studies.statistics import describe, waiting_time

METRICS = ("pairwise_accuracy", "kendall_tau", "spearman_rho", "violated_margins", "descent_rate")


def ablation_results(
    config: AblateConfig,
    rows: Sequence[Mapping[str, Any]],
    downstream: Sequence[Mapping[str, Any]] = (),
) -> StudyResults:
    """Everything that an ablation has to say.

    Args:
      config: its configuration.
      rows: what was measured of each cell, in the order of `config.cells()`.
      downstream: what `train_downstream` gave.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    cells = dict(zip(config.cells(), rows, strict=True))
    comparisons = compare_cells(config, cells)
    correlations, tables = downstream_tables(downstream) if downstream else ([], [])
    return StudyResults(
        study="ablate",
        title="Ablation of the evolution",
        finding=finding(config, cells, comparisons, downstream, correlations),
        protocol=protocol(config, cells, len(comparisons), downstream),
        tables=[
            summary_table(config, cells),
            *([comparison_table(comparisons)] if comparisons else []),
            regime_table(cells),
            *tables,
        ],
        figures=[
            *ablation_figures(config, cells),
            *(downstream_figures(downstream, correlations) if downstream else []),
        ],
    )


def summary_table(config: AblateConfig, cells: Cells) -> Table:
    """One row for each cell."""
    rows = [_summary(config, cell, row) for cell, row in cells.items()]
    columns = [
        *_names(cells),
        Column("n", lambda row: str(row["n"])),
        Column(
            "final objective (mean ± sd)", mean_and_deviation("objective", "objective_sd", ".4f")
        ),
        Column("95 % interval", interval("objective_low", "objective_high", ".4f")),
        Column("area (mean ± sd)", mean_and_deviation("area", "area_sd", ".4f")),
        *(_reached_column(f"{threshold:g}") for threshold in config.thresholds),
        Column("pairwise accuracy (mean ± sd)", mean_and_deviation(*_both(METRICS[0]), ".4f")),
        Column("margins violated (mean ± sd)", mean_and_deviation(*_both(METRICS[3]), ".4f")),
        Column("last step size (median)", number("last_step_size")),
        Column("seconds (compile + run)", _seconds),
    ]
    return Table("cells", "Each cell over its seeds (objective: lower is better)", rows, columns)


def _names(cells: Cells) -> list[Column]:
    """What tells a cell, without what is not compared."""
    compared = next(iter(cells)).compared()
    return [
        Column(
            axis.heading,
            lambda row, field=axis.field: name_of(row[field]),
            not isinstance(compared[axis.field], str),
        )
        for axis in AXES
        if axis.field in compared
    ]


def _both(metric: str) -> tuple[str, str]:
    return metric, f"{metric}_sd"


def _summary(config: AblateConfig, cell: Cell, row: Mapping[str, Any]) -> dict[str, Any]:
    final, area = (
        describe(values[np.isfinite(values)])
        for values in (values_of(row, name) for name in (FINAL, AREA))
    )
    found = {
        **cell.compared(),
        "n": final.n,
        "objective": final.mean,
        "objective_sd": final.deviation,
        "objective_low": final.low,
        "objective_high": final.high,
        "area": area.mean,
        "area_sd": area.deviation,
    }
    for threshold in config.thresholds:
        name = f"{threshold:g}"
        times, reached = times_of(row, threshold)
        waiting = waiting_time(times / cell.population_size, reached)
        found[f"reached_{name}"] = f"{waiting.reached} of {waiting.n}"
        for part in ("median", "low", "high"):
            value = getattr(waiting, part)
            found[f"generations_{name}_{part}"] = value if math.isfinite(value) else None
        median = found[f"generations_{name}_median"]
        found[f"evaluations_{name}_median"] = median and median * cell.population_size
    for metric in METRICS:
        values = _finite(values_of(row, metric))
        found[metric], found[f"{metric}_sd"] = values.mean(), values.std(ddof=1)
    steps = _finite(np.asarray(row["step_sizes"], float))
    seconds = {name: row[name] for name in ("compile_seconds", "run_seconds", "measure_seconds")}
    speed = row["evaluations"] * len(row["seeds"]) / row["run_seconds"]
    return {
        **found,
        "last_step_size": float(np.median(steps)) if len(steps) else None,
        "evaluations": row["evaluations"],
        **seconds,
        "evaluations_per_second": speed,
    }


def _finite(values: np.ndarray) -> np.ndarray:
    """The finite ones; NaN alone where there are none, so that nothing stands for nothing."""
    kept = values[np.isfinite(values)]
    return kept if len(kept) else np.asarray([math.nan, math.nan])


def _reached_column(name: str) -> Column:
    def text(row: Row) -> str:
        middle = row[f"generations_{name}_median"]
        ends = [row[f"generations_{name}_{part}"] for part in ("low", "high")]
        low, high = ("∞" if x is None else f"{x:.0f}" for x in ends)
        median = "not by half" if middle is None else f"{middle:.0f} ({low} to {high})"
        return f"{median}; {row[f'reached_{name}']}"

    return Column(f"generations to {name}: median (95 %); reached", text)


def _seconds(row: Row) -> str:
    return f"{row['compile_seconds']:.0f} + {row['run_seconds']:.0f}"


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each test."""
    columns = [
        Column("effect", lambda row: row["effect"], False),
        Column("setting", lambda row: row["setting"], False),
        Column("compared", lambda row: f"{row['name']} − {row['baseline']}", False),
        Column("measure", lambda row: row["measure"], False),
        Column("n", lambda row: str(row["n"])),
        Column("difference", number("difference", "+.4g")),
        Column("95 % interval", interval("low", "high", "+.4g")),
        Column("d", number("effect_size", "+.2f")),
        Column("detectable", number("detectable", ".3g")),
        Column("test", lambda row: row["test"], False),
        Column("p", p_value("p")),
        Column("p, Holm", p_value("p_holm")),
        Column("verdict", lambda row: row["verdict"], False),
    ]
    rows = [
        {name: None if value == math.inf else value for name, value in row.items()}
        for row in comparisons
    ]
    return Table("comparisons", "Differences paired by seed (below 0: better)", rows, columns)


def regime_table(cells: Cells) -> Table:
    """One row for each cell and regime of the held-out pairs."""
    rows = []
    for cell, row in cells.items():
        for regime in REGIMES:
            found: dict[str, Any] = {**cell.compared(), "regime": regime}
            for metric in METRICS:
                values = _finite(values_of(row, f"{metric}/{regime}"))
                found[metric] = float(values.mean())
                found[f"{metric}_sd"] = float(values.std(ddof=1))
            rows.append(found)
    columns = [
        *_names(cells),
        Column("regime", lambda row: row["regime"], False),
        *(
            Column(
                f"{metric.replace('_', ' ')} (mean ± sd)", mean_and_deviation(*_both(metric), ".3f")
            )
            for metric in METRICS
        ),
    ]
    return Table("regimes", "The winners' metrics on held-out pairs, by regime", rows, columns)
