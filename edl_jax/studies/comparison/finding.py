"""The paragraph of a comparison, made from the numbers of its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from edl_jax.studies.comparison.rows import by_setting
from edl_jax.studies.results import compared_p, is_absent
from edl_jax.studies.statistics import LEVEL

Row = Mapping[str, Any]


def finding(
    rows: Sequence[Row], rates: Sequence[Row], labels: Mapping[str, str], split: str = "test"
) -> str:
    """What differs from the first loss and what cannot be told apart from it, in each setting.

    Args:
      rows: of the comparison's table.
      rates: of the tuning's table; empty without tuning.
      labels: short names of the losses.
      split: what the images that losses are compared on are called.
    """
    groups = by_setting(rows)
    num_tests = sum(not is_absent(row["p_t"]) for row in rows)
    tuned = by_setting(rates)
    parts = []
    for setting, group in groups.items():
        text = " ".join(
            [
                *_of_setting(group, labels, num_tests, split),
                *_of_rates(tuned.get(setting, []), labels),
            ]
        )
        parts.append(f"{setting}: {text}" if len(groups) > 1 else text)
    return " ".join(parts)


def _of_setting(
    group: Sequence[Row], labels: Mapping[str, str], num_tests: int, split: str
) -> list[str]:
    baseline, *others = group
    name = labels[baseline["loss"]]
    seeds = f"{baseline['n']} seed{'s' if baseline['n'] > 1 else ''}"
    sentences = [
        f"Over {seeds}, {name} reaches a {split} accuracy of {baseline['accuracy_mean']:.2f} %."
    ]
    tested = [row for row in others if not is_absent(row["p_t_holm"])]
    found = [row for row in tested if row["p_t_holm"] < LEVEL]
    above = sorted((row for row in found if row["difference_mean"] > 0), key=_size)
    below = sorted((row for row in found if row["difference_mean"] < 0), key=_size)
    if tested:
        sentences.append(
            "The others are compared with it by paired t-tests at the 5 % level after Holm's "
            f"correction for {num_tests} test{'s' if num_tests > 1 else ''}."
        )
    for side, where in ((above, "above"), (below, "below")):
        if side:
            sentences.append(f"Significantly {where} it: {_listed(side, labels)}.")
    undecided = sorted((row for row in tested if row not in found), key=_size)
    if undecided:
        sizes = [row["detectable"] for row in undecided]
        least, most = f"{min(sizes):.2f}", f"{max(sizes):.2f}"
        listed = ", ".join(
            f"{labels[row['loss']]} ({row['difference_mean']:+.2f} points)" for row in undecided
        )
        sentences.append(
            f"Not told apart from it: {listed}. With {seeds} the test finds a true difference of "
            f"{least if least == most else f'{least} to {most}'} points four times in five, before "
            "correction."
        )
    undefined = [labels[row["loss"]] for row in others if row not in tested]
    if undefined:
        sentences.append(
            f"No test is defined for {', '.join(undefined)}: one seed alone, or the same "
            "difference at every seed."
        )
    diverged = [
        f"{labels[x['loss']]} ({x['diverged']} of {x['n']})" for x in group if x["diverged"]
    ]
    if diverged:
        sentences.append(f"Diverged, counted as guessing: {', '.join(diverged)}.")
    for column, what, unit in (
        ("nll_mean", "negative log-likelihood", "nats"),
        ("calibration_error_mean", "calibration error", "%"),
    ):
        known = [row for row in group if not is_absent(row[column])]
        if len(known) > 1:
            best = min(known, key=lambda row: row[column])
            of_baseline = (
                ""
                if best is baseline or baseline not in known
                else (f" ({name}: {baseline[column]:.3g} {unit})")
            )
            sentences.append(
                f"The lowest {what} is that of {labels[best['loss']]}, {best[column]:.3g} {unit}"
                f"{of_baseline}."
            )
    return sentences


def _of_rates(rates: Sequence[Row], labels: Mapping[str, str]) -> list[str]:
    if not rates:
        return []
    chosen: dict[tuple[float, bool], list[str]] = {}
    for row in sorted(rates, key=lambda row: row["learning_rate"]):
        if row["chosen"]:
            takers = chosen.setdefault((row["learning_rate"], row["edge"]), [])
            takers.append(labels[row["loss"]])
    at_edge = " (the grid's edge)"
    parts = [
        f"{rate:g}{at_edge if is_edge else ''} for {', '.join(takers)}"
        for (rate, is_edge), takers in chosen.items()
    ]
    sentence = f"Learning rates chosen on validation images: {'; '.join(parts)}."
    has_edge = any(is_edge for _, is_edge in chosen)
    return [sentence, "Beyond an edge a better rate may lie."] if has_edge else [sentence]


def _listed(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    parts = []
    for row in rows:
        parts.append(
            f"{labels[row['loss']]} by {row['difference_mean']:+.2f} points (95 % interval "
            f"{row['difference_low']:+.2f} to {row['difference_high']:+.2f}, "
            f"p {compared_p(row['p_t_holm'])})"
        )
    return ", ".join(parts)


def _size(row: Row) -> float:
    return -abs(row["difference_mean"])
