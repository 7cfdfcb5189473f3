"""The tables of this folder's page that compare trainings of several commands.

python results/recipes/tables.py
"""

import json
from pathlib import Path

import numpy as np

from edl_jax.studies.results import interval, mean_and_deviation
from edl_jax.studies.statistics import compare_paired, describe, holm

HERE = Path(__file__).parent
plain = mean_and_deviation("mean", "deviation")
signed = mean_and_deviation("mean", "deviation", "+.2f")
ends = interval("low", "high")


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


def of_edl() -> list[str]:
    """Edl beside cross-entropy on 10,000 images, by recipe, and over all recipes together."""
    recipes = {path.stem: accuracies(path) for path in sorted((HERE / "edl").glob("*.jsonl"))}
    rows, means = [], []
    for name, by_loss in recipes.items():
        baseline = by_loss["cross_entropy"]
        theirs = np.asarray([*baseline.values()])
        mine = np.asarray([by_loss["edl"][seed] for seed in baseline])
        means.append((mine.mean(), theirs.mean()))
        cells = (
            plain(describe(theirs)._asdict()),
            plain(describe(mine)._asdict()),
            signed(describe(mine - theirs)._asdict()),
        )
        rows.append(f"| `{name}` | {len(baseline)} | {' | '.join(cells)} |")
    found = compare_paired(*np.transpose(means))
    d = found.difference._asdict()
    together = f"{signed(d)} ({ends(d)}, p = {found.p_t:.2f})"
    rows.append(f"| all {len(means)}, their means | | | | {together} |")
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
        d = found.difference._asdict()
        p = f"{found.p_t:.3f} ({corrected:.3f})"
        rows.append(f"| {name} | {signed(d)} | {ends(d)} | {p} |".replace("-", "−"))
    return rows


if __name__ == "__main__":
    print(*of_edl(), "", *of_other_rate(), sep="\n")
