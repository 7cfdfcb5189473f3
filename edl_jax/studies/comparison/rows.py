"""The rows of a comparison's tables: statistics of its cells."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.studies.comparison.config import Setting
from edl_jax.studies.statistics import Paired, Sample, compare_paired, describe, holm

Row = Mapping[str, Any]
TESTS = ("p_t", "p_wilcoxon", "p_welch")
MAX_EXTENSIONS = 4  # rates that a loss may try beyond its grid, in each setting


def comparison_rows(cells: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each loss in each setting.

    Accuracies and calibration errors are in percent, differences to the setting's first loss in
    points. A training that diverged counts with the accuracy of guessing, and is left out of the
    negative log-likelihood and the calibration error. `..._holm` are p-values corrected for all
    tests of their kind in all settings.
    """
    rows = []
    for setting, group in by_setting(cells).items():
        accuracies = percent_by_loss(group)
        names = list(accuracies)
        for name in names:
            mine = [cell for cell in group if cell["loss"] == name]
            sound = [cell for cell in mine if not cell["diverged"]]
            nll = np.asarray([_measured(cell, "nll") for cell in sound], float)
            errors = [_measured(cell, "calibration_error") for cell in sound]
            error = 100 * np.asarray(errors, float)
            paired = _nothing()
            if name != names[0]:
                paired = compare_paired(accuracies[name], accuracies[names[0]])
            rows.append(
                {
                    **setting._asdict(),
                    "loss": name,
                    "learning_rate": mine[0]["learning_rate"],
                    "n": len(mine),
                    "diverged": len(mine) - len(sound),
                    **_named("accuracy", describe(accuracies[name])),
                    **_named("difference", paired.difference),
                    **{x: value for x, value in paired._asdict().items() if x != "difference"},
                    **_named("nll", _describe_measured(nll)),
                    **_named("calibration_error", _describe_measured(error)),
                }
            )
    for test in TESTS:
        for row, p in zip(rows, holm([row[test] for row in rows]), strict=True):
            row[f"{test}_holm"] = p
    return rows


def tuning_rows(cells: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each learning rate of each loss in each setting, by size; `chosen` has the best.

    That is the best mean validation accuracy, in percent; of equals, the one tried first. A
    training that diverged counts with the accuracy of guessing. `edge` has a rate that no lower,
    or no higher, one was tried beside.
    """
    rows = []
    for setting, group in by_setting(cells).items():
        for name in dict.fromkeys(cell["loss"] for cell in group):
            mine: dict[float, list[Row]] = {}
            for cell in group:
                if cell["loss"] == name:
                    mine.setdefault(cell["learning_rate"], []).append(cell)
            means = {
                rate: 100 * float(np.mean([_val_accuracy(cell) for cell in at_rate]))
                for rate, at_rate in mine.items()
            }
            best = max(means, key=lambda rate: means[rate])
            rows += [
                {
                    **setting._asdict(),
                    "loss": name,
                    "learning_rate": rate,
                    "n": len(mine[rate]),
                    "diverged": sum(bool(cell["diverged"]) for cell in mine[rate]),
                    "val_accuracy_mean": means[rate],
                    "chosen": rate == best,
                    "edge": rate in (min(means), max(means)),
                }
                for rate in sorted(means)
            ]
    return rows


def best_learning_rates(cells: Sequence[Row], setting: Setting) -> dict[str, float]:
    """The learning rate that each loss takes in a setting, from cells of the tuning."""
    rows = by_setting(tuning_rows(cells))[setting]
    return {row["loss"]: row["learning_rate"] for row in rows if row["chosen"]}


def next_learning_rates(cells: Sequence[Row], setting: Setting) -> dict[str, float]:
    """For each loss whose best rate in a setting is at an end of its grid, the one beyond it.

    It is as far beyond as the best one is from its neighbour. Above a rate at which a training
    diverged none is.
    """
    found = {}
    rows = by_setting(tuning_rows(cells))[setting]
    for name in dict.fromkeys(row["loss"] for row in rows):
        mine = [row for row in rows if row["loss"] == name]
        rates = [row["learning_rate"] for row in mine]
        best = next(i for i, row in enumerate(mine) if row["chosen"])
        if best == 0:
            found[name] = rates[0] * rates[0] / rates[1]
        elif best == len(rates) - 1 and not mine[best]["diverged"]:
            found[name] = rates[-1] * rates[-1] / rates[-2]
    return {name: float(f"{rate:.6g}") for name, rate in found.items()}  # 0.05, not 0.0500...01


def by_setting(rows: Sequence[Row]) -> dict[Setting, list[Row]]:
    """Cells or rows by the setting that they are of."""
    groups: dict[Setting, list[Row]] = {}
    for row in rows:
        setting = Setting(row["model"], row["dataset"], row["noise_rate"])
        groups.setdefault(setting, []).append(row)
    return groups


def percent_by_loss(cells: Sequence[Row]) -> dict[str, np.ndarray]:
    """Accuracies, %, of each loss, `[n]` in the order of the cells; guessing if diverged."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        accuracy = cell["chance"] if cell["diverged"] else _measured(cell, "accuracy")
        values.setdefault(cell["loss"], []).append(100 * accuracy)
    return {name: np.asarray(found) for name, found in values.items()}


def _val_accuracy(cell: Row) -> float:
    return cell["chance"] if cell["diverged"] else cell["epochs"][-1]["accuracy"]


def _measured(cell: Row, name: str) -> float:
    """A metric on what losses are compared on: the last epoch's where no test image was used."""
    has_test = cell["test_accuracy"] is not None
    return cell[f"test_{name}"] if has_test else cell["epochs"][-1][name]


def _describe_measured(values: np.ndarray) -> Sample:
    """As `describe`; NaN if there are none, or one is not finite."""
    is_sound = len(values) and np.all(np.isfinite(values))
    return describe(values) if is_sound else Sample(len(values), *[math.nan] * 5)


def _nothing() -> Paired:
    return Paired(Sample(0, *[math.nan] * 5), *[math.nan] * 5)


def _named(prefix: str, sample: Sample) -> dict[str, float]:
    return {f"{prefix}_{name}": x for name, x in sample._asdict().items() if name != "n"}
