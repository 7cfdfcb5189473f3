"""Statistics of a comparison: plain functions of accuracies."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Summary:
    """One loss's test accuracies, in percent, and its differences to the baseline, in points.

    Attributes:
      loss: the loss's name.
      n: number of trainings.
      mean: mean accuracy.
      deviation: sample standard deviation (n - 1); NaN for a single training.
      difference: mean difference to the baseline, paired by seed; NaN for the baseline.
      difference_deviation: sample standard deviation of the differences.
      p_value: two-sided paired t-test of no difference; NaN where it is not defined.
    """

    loss: str
    n: int
    mean: float
    deviation: float
    difference: float = math.nan
    difference_deviation: float = math.nan
    p_value: float = math.nan


def summarise(accuracies: Mapping[str, np.ndarray]) -> list[Summary]:
    """Summaries of accuracies in [0, 1], `[n]` for each loss in the same order of seeds.

    The first loss is the baseline.
    """
    baseline = 100 * next(iter(accuracies.values()))
    summaries = []
    for index, (loss, values) in enumerate(accuracies.items()):
        percent = 100 * values
        mean, deviation = float(percent.mean()), _deviation(percent)
        if index == 0:
            summaries.append(Summary(loss, len(percent), mean, deviation))
            continue
        differences = percent - baseline
        spread = _deviation(differences)
        # Without spread, but for rounding, the test is not defined; NaN says so.
        p_value = float(stats.ttest_rel(percent, baseline).pvalue) if spread > 1e-9 else math.nan
        summaries.append(
            Summary(loss, len(percent), mean, deviation, float(differences.mean()), spread, p_value)
        )
    return summaries


def labels_of(losses: Sequence[str]) -> dict[str, str]:
    """Short names of losses: a file's without folder and ending, unless two would be the same."""
    short = {loss: Path(loss).stem if loss.endswith(".safetensors") else loss for loss in losses}
    return short if len(set(short.values())) == len(short) else {loss: loss for loss in losses}


def format_table(summaries: list[Summary]) -> str:
    """The summaries as a Markdown table, one row for each loss."""
    labels = labels_of([summary.loss for summary in summaries])
    lines = [
        f"| loss | n | test accuracy, % (mean ± sd) | difference to {labels[summaries[0].loss]}, "
        "points (mean ± sd) | p, paired t |",
        "|---|---:|---:|---:|---:|",
    ]
    for s in summaries:
        difference = p_value = "—"
        if not math.isnan(s.difference):
            difference = f"{s.difference:+.2f} ± {s.difference_deviation:.2f}"
            p_value = f"{s.p_value:.3g}"
        accuracy = f"{s.mean:.2f} ± {s.deviation:.2f}"
        lines.append(f"| {labels[s.loss]} | {s.n} | {accuracy} | {difference} | {p_value} |")
    return "\n".join(lines) + "\n"


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan
