"""The tables of this folder's page that compare trainings of several commands.

python results/recipes/tables.py
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edl_jax.studies.statistics import compare_paired, holm

HERE = Path(__file__).parent


def accuracies(*paths: Path) -> dict[str, dict[int, float]]:
    """Test accuracies in percent of the comparison's trainings, by loss and seed."""
    found: dict[str, dict[int, float]] = {}
    for path in paths:
        for cell in map(json.loads, path.read_text().splitlines()):
            if cell["phase"] == "comparison":
                loss = Path(cell["loss"]).name.removesuffix(".safetensors")
                by_seed = found.setdefault(loss, {})
                by_seed[cell["seed"]] = 100 * cell["test_accuracy"]
    return found


def short(values: Sequence[float], sign: str = "") -> str:
    """Mean and deviation; the deviation of one value is not known."""
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.2f}{deviation}"


def of_edl() -> list[str]:
    """Edl beside cross-entropy on 10,000 images, by recipe, and over all recipes together."""
    recipes = {path.stem: accuracies(path) for path in sorted((HERE / "edl").glob("*.jsonl"))}
    rows, means = [], []
    for name, x in recipes.items():
        mine, baseline = x["edl"], x["cross_entropy"]
        differences = [mine[seed] - baseline[seed] for seed in baseline]
        means.append((np.mean([*mine.values()]), np.mean([*baseline.values()])))
        rows.append(
            f"| `{name}` | {len(differences)} | {short([*baseline.values()])} "
            f"| {short([*mine.values()])} | {short(differences, '+')} |"
        )
    found = compare_paired(*np.transpose(means))
    d = found.difference
    together = (
        f"{d.mean:+.2f} ± {d.deviation:.2f} ({d.low:+.2f} to {d.high:+.2f}, p = {found.p_t:.2f})"
    )
    rows.append(f"| all {d.n}, their means | | | | {together} |")
    return [text.replace("-", "−") for text in rows]


def of_other_rate() -> list[str]:
    """Each loss of cifar10_full beside cross-entropy at 0.4."""
    baseline = accuracies(HERE / "lr_double.jsonl", HERE / "lr_double_cpu.jsonl")["cross_entropy"]
    losses = accuracies(HERE.parent / "cifar10_full" / "cells.jsonl")
    del losses["cross_entropy"]
    paired = [
        compare_paired([values[seed] for seed in baseline], [*baseline.values()])
        for values in losses.values()
    ]
    rows = []
    for name, found, corrected in zip(losses, paired, holm([x.p_t for x in paired]), strict=True):
        d = found.difference
        rows.append(
            f"| {name} | {d.mean:+.2f} ± {d.deviation:.2f} | {d.low:+.2f} to {d.high:+.2f} "
            f"| {found.p_t:.3f} ({corrected:.3f}) |".replace("-", "−")
        )
    return rows


if __name__ == "__main__":
    print(*of_edl(), "", *of_other_rate(), sep="\n")
