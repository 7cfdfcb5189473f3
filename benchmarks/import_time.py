"""How long loading `edl_jax` takes beside what it is built on, each in fresh interpreters.

Command:  python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "import jax, flax.nnx, evosax": "baseline",
    "from edl_jax import pretrain": "edl_jax",
}


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs `statement`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main(repeats: int = 11) -> None:
    """Print median, spread and ratio, the two taking turns."""
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for statement in STATEMENTS:
        seconds(statement)  # fills the caches
    for _ in range(repeats):
        for statement, measured in times.items():
            measured.append(seconds(statement))
    medians = {}
    for statement, measured in times.items():
        low, medians[statement], high = statistics.quantiles(measured, n=4)
        print(
            f"{statement:32} median {medians[statement]:.2f} s, quartiles {low:.2f} to {high:.2f}"
        )
    baseline, own = medians.values()
    print(f"ratio {own / baseline:.2f} (the goal is under 1.5)")


if __name__ == "__main__":
    main()
