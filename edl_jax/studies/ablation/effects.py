"""What is compared in an ablation, and the tests of it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from edl_jax.studies.ablation.axes import AXES, Axis, Cell, name_of, setting_name
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.statistics import LEVEL, compare_paired, holm, logrank, waiting_time

# The controls tell apart what chaos brings: an orbit instead of independent draws (dynamics, at
# the same marginal), and the distribution of its values (marginal, of independent draws).
MUTATION_EFFECTS = (
    ("chaos", "logistic", "gaussian"),
    ("dynamics", "logistic", "arcsine"),
    ("dynamics", "logistic_gaussian", "gaussian"),
    ("marginal", "arcsine", "gaussian"),
    ("marginal", "uniform", "gaussian"),
)
FINAL, AREA = "final objective", "area under the curve"

Cells = Mapping[Cell, Mapping[str, Any]]


class Contrast(NamedTuple):
    """Two cells that differ in one setting.

    Attributes:
      effect: what the difference is of: chaos, dynamics, marginal, or of an axis.
      cell: a cell.
      baseline: what it is compared with.
    """

    effect: str
    cell: Cell
    baseline: Cell

    def names(self) -> tuple[str, str]:
        """The two values of the setting in which they differ."""
        pairs = zip(self.cell, self.baseline, strict=True)
        ((value, other),) = [(a, b) for a, b in pairs if a != b]
        return name_of(value), name_of(other)

    def setting(self) -> str:
        """The settings in which they agree."""
        pairs = zip(self.cell, self.baseline, strict=True)
        return setting_name(a if a == b else None for a, b in pairs)


def contrasts(config: AblateConfig) -> Iterator[Contrast]:
    """What is compared: mutations that tell an effect, and of the rest each value with the first.

    Severities and class counts are not compared: each has an objective, or pairs, of its own.
    """
    cells = config.cells()
    for effect, mutation, other in MUTATION_EFFECTS:
        for cell in cells:
            baseline = cell._replace(mutation=other)
            if cell.mutation == mutation and baseline in cells:
                yield Contrast(effect, cell, baseline)
    for axis in AXES:
        first = getattr(cells[0], axis.field)
        for cell in cells:
            if axis.question and getattr(cell, axis.field) != first:
                yield Contrast(axis.effect(), cell, cell._replace(**{axis.field: first}))


def values_of(row: Mapping[str, Any], measure: str) -> np.ndarray:
    """One value for each seed, NaN where there is none: `FINAL`, `AREA` or a metric's name."""
    if measure == AREA:
        return np.asarray(row["area"], float)
    name = "objective" if measure == FINAL else measure
    return np.asarray([metrics.get(name) for metrics in row["final"]], float)


def times_of(row: Mapping[str, Any], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Evaluations of networks until each seed reached a threshold, or that were watched in vain.

    Returns:
      `[num_seeds]` times, and `[num_seeds]` booleans that say which of them got there.
    """
    found = row["reached"][f"{threshold:g}"]
    reached = np.asarray([generation is not None for generation in found])
    last = row["generations"][-1]
    times = np.asarray([last if generation is None else generation for generation in found])
    return times * (row["evaluations"] / last), reached


def compare_cells(config: AblateConfig, cells: Cells) -> list[dict[str, Any]]:
    """Every test of the ablation, one row each; `p_holm` is corrected for all of them.

    Final objective and area are compared by a paired t-test; times until a threshold by the
    log-rank test, which takes account of seeds that never got there but not of the pairing, over as
    many evaluations as both cells had. The values of times are medians (Kaplan-Meier), and their
    difference is of what was watched, so a seed that never got there counts as all of these
    (restricted mean time).
    """
    rows = []
    for contrast in contrasts(config):
        for measure in (FINAL, AREA):
            rows.append(_compared(contrast, cells, measure))
        rows += [_raced(contrast, cells, threshold) for threshold in config.thresholds]
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["verdict"] = verdict(row)
    return rows


def verdict(row: Mapping[str, Any]) -> str:
    """`better`, `worse` or `not told apart`, at the 5 % level after correction; less is better."""
    if not row["p_holm"] < LEVEL:
        return "not told apart"
    return "better" if row["difference"] < 0 else "worse"


def _compared(contrast: Contrast, cells: Cells, measure: str) -> dict[str, Any]:
    pair = [values_of(cells[cell], measure) for cell in (contrast.cell, contrast.baseline)]
    is_finite = np.isfinite(pair).all(axis=0)
    values, baseline = (x[is_finite] for x in pair)
    return {**_told(contrast, measure, values, baseline), "test": "paired t"}


def _raced(contrast: Contrast, cells: Cells, threshold: float) -> dict[str, Any]:
    pair = [cells[cell] for cell in (contrast.cell, contrast.baseline)]
    # As long as both were watched: a larger population's failures would cost it more otherwise.
    horizon = min(row["evaluations"] for row in pair)
    (times, reached), (others, others_reached) = (
        (np.minimum(times, horizon), reached & (times <= horizon))
        for times, reached in (times_of(row, threshold) for row in pair)
    )
    row = _told(contrast, f"evaluations to {threshold:g}", times, others)
    # Of two groups that took exactly as long there is nothing to test.
    is_same = sorted(zip(times, reached, strict=True)) == sorted(
        zip(others, others_reached, strict=True)
    )
    p = math.nan if is_same else logrank(times, reached, others, others_reached)
    middle = waiting_time(times, reached).median, waiting_time(others, others_reached).median
    medians = dict(zip(("value", "baseline_value"), middle, strict=True))
    # Of the paired t-test, which is not made of times.
    untold = dict.fromkeys(("effect_size", "detectable", "p_wilcoxon"), math.nan)
    return {**row, **medians, **untold, "p": p, "test": "log-rank"}


def _told(
    contrast: Contrast, measure: str, values: np.ndarray, baseline: np.ndarray
) -> dict[str, Any]:
    name, other = contrast.names()
    row = {
        "effect": contrast.effect,
        "setting": contrast.setting(),
        "name": name,
        "baseline": other,
        "measure": measure,
        "n": len(values),
    }
    if not len(values):
        return row | dict.fromkeys(_NUMBERS, math.nan)
    found = compare_paired(values, baseline)
    numbers = (
        float(values.mean()), float(baseline.mean()), found.difference.mean, found.difference.low,
        found.difference.high, found.effect_size, found.detectable, found.p_t, found.p_wilcoxon,
    )  # fmt: skip
    return row | dict(zip(_NUMBERS, numbers, strict=True))


_NUMBERS = (
    "value", "baseline_value", "difference", "low", "high", "effect_size", "detectable", "p",
    "p_wilcoxon",
)  # fmt: skip


def series_axis(cells: Iterable[Cell]) -> Axis:
    """What the series of a figure differ in: the mutation, or the first axis of several values."""
    values = [set(column) for column in zip(*cells, strict=True)]
    several = [axis for axis, found in zip(AXES, values, strict=True) if len(found) > 1]
    return several[0] if several else AXES[0]


def settings_of(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells by what they agree in but for `series_axis`; each group is a panel of a figure."""
    cells, groups = list(cells), {}
    apart = series_axis(cells).field
    for cell in cells:
        groups.setdefault(setting_name(cell._replace(**{apart: None})), []).append(cell)
    return groups
