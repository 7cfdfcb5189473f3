"""Measures the checkout whose `benchmarks` package Python finds; started by `against`.

It may be an older one: nothing is used here but what version 0.1.0 has too.
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.training_work import TrainWork, our_training
from edl_jax import PretrainConfig

LEAST_RUNS, LEAST_SECONDS = 3, 3.0
STEPS = 2  # of a training, in one run


def settings(quick: bool) -> Iterator[tuple[str, str, int, int, Any]]:
    """`(name, what is counted, how many are in an item, items of a run, prepare)` of each."""
    populations = [(256, 4096), (2048, 4096)]
    works = [TrainWork("resnet8", 128), TrainWork("resnet20", 128)]
    if quick:
        populations, works = [(16, 64)], [TrainWork("resnet8", 8, width=2, image_size=8)]
    for point in populations:
        work: Any = SimpleNamespace(
            pair_evaluations=point[0] * point[1],
            config=partial(PretrainConfig, population_size=point[0], pairs_per_generation=point[1]),
        )
        name = f"generation, {point[0]:,} networks × {point[1]:,} pairs"
        yield name, "generations/s", 1, ours.unit(work), partial(ours.generations, work, 0)
    for work in works:
        name = f"training step, {work.model}, batch {work.batch_size}"
        yield name, "images/s", work.batch_size, STEPS, our_training(work, STEPS)


def main(quick: bool) -> None:
    """Print one line of JSON: by setting, the median seconds of an item and those to set up."""
    found = {}
    for name, unit, amount, items, prepare in settings(quick):
        begin = time.perf_counter()
        run = prepare()
        run(1)
        compile_s = time.perf_counter() - begin
        run(1)  # untimed: caches fill
        seconds = []
        while len(seconds) < LEAST_RUNS or (sum(seconds) < LEAST_SECONDS and not quick):
            begin = time.perf_counter()
            run(1)
            seconds.append(time.perf_counter() - begin)
        found[name] = {
            "seconds": float(np.median(seconds)) / items,
            "compile_s": compile_s,
            "unit": unit,
            "amount": amount,
        }
        del run
    print(json.dumps(found))


if __name__ == "__main__":
    main("--quick" in sys.argv)
