"""The transfer study's numbers as rows of its tables, over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.pairs import REGIMES, Pairs
from edl_jax.studies.transferability.distances import SUMMARIES, summarise_pairs
from edl_jax.studies.transferability.measures import MIXTURE
from edl_jax.studies.transferability.recording import PARTS, Recording

Row = dict[str, Any]
CONTROL = "fresh synthetic pairs"
RANKING = (
    "pairwise_accuracy",
    "kendall_tau",
    "spearman_rho",
    "violated_margins",
    "descent_rate",
    "gradient_ratio",
)
_KEYS = ("loss", "part", "epoch")


def distance_rows(comparisons: Sequence[Row]) -> list[Row]:
    """Every comparison, over seeds."""
    rows = []
    for key, group in _by_key(comparisons).items():
        for reference in group[0]["references"]:
            cells = [row["references"][reference] for row in group]
            about = {**dict(zip(_KEYS, key, strict=True)), "reference": reference}
            measured = _over_seeds(cells, [name for name in cells[0] if name != "p"])
            rows.append({**about, "n": len(group), **measured, "p": max(c["p"] for c in cells)})
    return rows


def ranking_rows(comparisons: Sequence[Row]) -> list[Row]:
    """Ranking metrics over seeds, and of the control also by regime."""
    rows = []
    for key, group in _by_key(comparisons).items():
        about = dict(zip(_KEYS, key, strict=True))
        cells = [row["ranking"] for row in group]
        suffixes = {"": "all"} | {f"/{name}": name for name in REGIMES}
        for suffix, regime in suffixes.items():
            own = [{name: cell.get(name + suffix) for name in RANKING} for cell in cells]
            if any(value is not None for value in own[0].values()):
                rows.append(
                    {**about, "regime": regime, "n": len(group), **_over_seeds(own, RANKING)}
                )
    return rows


def summary_rows(
    names: Mapping[str, str],
    recordings: Mapping[tuple[str, int], Recording],
    references: Mapping[str, Pairs],
) -> list[Row]:
    """Quartiles of each summary over the outputs of all seeds, and over the synthetic pairs."""
    rows = []

    def add(about: Row, n: int, found: Iterable[Mapping[str, np.ndarray]]) -> None:
        found = list(found)
        for summary in SUMMARIES:
            values = np.concatenate([x[summary] for x in found])
            quartiles = np.percentile(values, [25, 50, 75]).tolist()
            ends = dict(zip(("lower", "median", "upper"), quartiles, strict=True))
            rows.append({**about, "n": n, "summary": summary, "outputs": len(values), **ends})

    for reference, pairs in references.items():
        about = {"loss": f"synthetic: {reference}", "part": None, "epoch": None, "correct": None}
        add({**about, "correct_deviation": None}, 1, [summarise_pairs(pairs)])
    for loss, label in names.items():
        mine = [recording for (name, _), recording in recordings.items() if name == loss]
        for part in PARTS:
            for number, epoch in enumerate(mine[0].epochs.tolist()):
                found = [summarise_pairs(recording.pairs(part, number)) for recording in mine]
                correct = [{"correct": float((x["rank"] == 1).mean())} for x in found]
                about = {"loss": label, "part": part, "epoch": epoch}
                add({**about, **_over_seeds(correct, ["correct"])}, len(mine), found)
    return rows


def overview_rows(
    distances: Sequence[Row], summaries: Sequence[Row], ranking: Sequence[Row]
) -> list[Row]:
    """For each loss, part and epoch, and for the control: the mixture, and the nearest regime."""
    rows = []
    for key, group in _by_key(distances).items():
        by_name = {row["reference"]: row for row in group}
        mixture = by_name.pop(MIXTURE)
        nearest = min(by_name.values(), key=lambda row: row["divergence"])
        (ranked,) = (row for row in ranking if _key(row) == key and row["regime"] == "all")
        correct = next((row["correct"] for row in summaries if _key(row) == key), None)
        taken = ("divergence", "mmd", "accuracy", "coverage")
        rows.append(
            {
                **dict(zip(_KEYS, key, strict=True)),
                "n": mixture["n"],
                "correct": correct,
                "nearest": nearest["reference"],
                "nearest_divergence": nearest["divergence"],
                **{f"{x}{end}": mixture[f"{x}{end}"] for x in taken for end in ("", "_deviation")},
                "p": mixture["p"],
                "pairwise_accuracy": ranked["pairwise_accuracy"],
                "violated_margins": ranked["violated_margins"],
            }
        )
    return rows


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEYS)


def _by_key(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    return groups


def _over_seeds(cells: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Row:
    """Mean and sample standard deviation of each name's values; None where there is none."""
    found: Row = {}
    for name in names:
        values = [cell[name] for cell in cells if cell[name] is not None]
        found[name] = float(np.mean(values)) if values else None
        found[f"{name}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return found


def cell_of(row: Row) -> tuple[Any, ...]:
    """What a comparison is of, by which it is found."""
    return row["loss"], row["seed"], row["epoch"], row["part"]


def check_row(row: Row) -> None:
    """Refuse, by a `KeyError`, `TypeError` or `ValueError`, one that cannot be reported."""
    hash(cell_of(row))
    if not dict(row["references"]) or not dict(row["ranking"]):
        raise ValueError("it holds no comparison")
