"""The table of this folder's page: each loss of cifar10_full beside cross-entropy at 0.4.

python results/recipes/rate.py
"""

import json
from pathlib import Path

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


def main() -> None:
    """Prints the table."""
    files = HERE / "lr_double.jsonl", HERE / "lr_double_cpu.jsonl"
    baseline = accuracies(*files)["cross_entropy"]
    losses = accuracies(HERE.parent / "cifar10_full" / "cells.jsonl")
    del losses["cross_entropy"]
    paired = [
        compare_paired([values[seed] for seed in baseline], [*baseline.values()])
        for values in losses.values()
    ]
    for name, found, corrected in zip(losses, paired, holm([x.p_t for x in paired]), strict=True):
        d = found.difference
        print(
            f"| {name} | {d.mean:+.2f} ± {d.deviation:.2f} | {d.low:+.2f} to {d.high:+.2f} "
            f"| {found.p_t:.3f} ({corrected:.3f}) |".replace("-", "−")
        )


if __name__ == "__main__":
    main()
