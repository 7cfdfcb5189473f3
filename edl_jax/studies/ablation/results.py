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
from edl_jax.studies.ablation.seeds import WATCHED_PAIRS
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
        protocol=_protocol(config, cells, len(comparisons), downstream),
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


def _protocol(
    config: AblateConfig,
    cells: Cells,
    num_tests: int,
    downstream: Sequence[Mapping[str, Any]],
) -> list[str]:
    base, seed = config.pretrain, config.pretrain.seed
    failed = sum(int((~np.isfinite(values_of(row, FINAL))).sum()) for row in cells.values())
    sentences = [
        f"Evolution only, no data: {base.network} network, hidden layers {base.hidden}, class "
        f"counts {base.class_counts}, strategy {base.strategy}, {base.generations} generations of "
        f"{base.pairs_per_generation} fresh pairs, where a cell says nothing else; seeds {seed} to "
        f"{seed + config.num_seeds - 1}, the same in every cell, each cell in one program.",
        "Objective: share of the asked margins that is missing (0: none, 1: a constant loss). "
        "Curves, areas and thresholds are of each generation's leader on at "
        f"least {WATCHED_PAIRS:,} pairs of the seed's own that it is not selected on, the same in "
        "every generation; area is the mean over all generations.",
        f"Final: the winner among the last elites on {base.held_out_pairs} held-out pairs, "
        f"measured on as many others. Seeds whose winner has no finite objective: {failed}; they "
        "are left out of means and of paired tests.",
        "Generations to a threshold: Kaplan-Meier's median with the interval of Brookmeyer and "
        "Crowley; a seed that never got there is censored at the last generation.",
        f"Tests: {num_tests} in all, p-values corrected for all of them together (Holm); "
        "differences with BCa bootstrap intervals, d the mean over the standard deviation of the "
        "paired differences, detectable: the difference that a paired t-test of so many finds four "
        "times in five, before correction. Times are compared by the log-rank test over as many "
        "evaluations as both cells had; their difference counts a seed that never got there as all "
        "of these.",
        "Populations and networks of another size or kind have other networks to begin with, and a "
        "larger population more evaluations in as many generations. Severities have objectives, "
        "and class counts pairs, of their own: they are not compared.",
    ]
    if downstream:
        train = config.train
        sentences.append(
            f"Downstream: {train.model} on {downstream[0]['data']}, {train.epochs} epochs, "
            f"learning rate {train.learning_rate}, seed {train.seed}, accuracy on "
            f"{train.val_examples} validation images after the last epoch; "
            "no test image was used. Losses are leaders "
            f"after {', '.join(map(str, config.downstream_generations))} generations, each of an "
            "evolution of its own, calibrated to cross-entropy's mean gradient norm. A training "
            "that diverges counts as guessing."
        )
    return sentences
