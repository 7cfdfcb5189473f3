"""The tables of this folder's page that compare trainings of several commands.

python results/recipes/tables.py
"""

import gzip
import json
from pathlib import Path

import numpy as np

from edl_jax.studies.statistics import Sample, compare_paired, holm, summarize

HERE = Path(__file__).parent


def with_std(found: Sample, form: str = ".2f") -> str:
    """Mean and standard deviation."""
    return f"{found.mean:{form}} ± {found.std:.2f}"


def ends(found: Sample) -> str:
    """The 95 % interval."""
    return f"{found.low:+.2f} to {found.high:+.2f}"


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()


def accuracies(*paths: Path) -> dict[str, dict[int, float]]:
    """Test accuracies in percent of the comparison's trainings, by loss and seed."""
    found: dict[str, dict[int, float]] = {}
    for path in paths:
        for cell in map(json.loads, _lines(path)):
            if cell["phase"] == "comparison":
                loss = Path(cell["loss"]).name.removesuffix(".safetensors")
                by_seed = found.setdefault(loss, {})
                by_seed[cell["seed"]] = 100 * cell["test_accuracy"]
    return found


def of_edl() -> list[str]:
    """Edl beside cross-entropy on 10,000 images, by recipe, and over all recipes together."""
    recipes = {path.stem: accuracies(path) for path in sorted((HERE / "edl").glob("*.jsonl"))}
    pairs = []
    for by_loss in recipes.values():
        baseline = by_loss["cross_entropy"]
        mine = np.asarray([by_loss["edl"][seed] for seed in baseline])
        pairs.append((mine, np.asarray([*baseline.values()])))
    tests = [compare_paired(mine, theirs) for mine, theirs in pairs]
    rows = []
    for name, (mine, theirs), found, corrected in zip(
        recipes, pairs, tests, holm([x.p for x in tests]), strict=True
    ):
        reached = [with_std(summarize(values)) for values in (theirs, mine)]
        d = found.difference
        cells = [
            str(len(mine)),
            *reached,
            with_std(d, "+.2f"),
            ends(d),
            f"{found.p:.2f} ({corrected:.2f})",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    found = compare_paired(*np.transpose([(mine.mean(), theirs.mean()) for mine, theirs in pairs]))
    d = found.difference
    cells = [with_std(d, "+.2f"), ends(d), f"{found.p:.2f}"]
    rows.append(f"| all {len(pairs)}, their means | | | | {' | '.join(cells)} |")
    return [text.replace("-", "−") for text in rows]


def of_other_rate() -> list[str]:
    """Each loss of cifar10_full beside cross-entropy at 0.4."""
    baseline = accuracies(HERE / "lr_double.jsonl", HERE / "lr_double_cpu.jsonl")["cross_entropy"]
    reached = np.asarray([*baseline.values()])
    losses = accuracies(HERE.parent / "cifar10_full" / "cells.jsonl.gz")
    del losses["cross_entropy"]
    paired = [
        compare_paired(np.asarray([values[seed] for seed in baseline]), reached)
        for values in losses.values()
    ]
    rows = []
    for name, found, corrected in zip(losses, paired, holm([x.p for x in paired]), strict=True):
        d = found.difference
        p = f"{found.p:.3f} ({corrected:.3f})"
        rows.append(f"| {name} | {with_std(d, '+.2f')} | {ends(d)} | {p} |".replace("-", "−"))
    return rows


if __name__ == "__main__":
    print(*of_edl(), "", *of_other_rate(), sep="\n")
