"""Learning rates: the best of a grid, which grows where the best lies at its edge."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RATE = "train.learning_rate"
MAX_EXTENSIONS = 4  # rates that may be tried beyond the grid
Row = Mapping[str, Any]


def tune(
    run: Callable[[Sequence[Row]], list[Any]], points: Sequence[Row], rates: Sequence[float]
) -> tuple[list[float], list[Any]]:
    """The best learning rate of each point, and all rows that were looked at.

    `run` gives equally many rows for each point of a list, in their order.
    """
    wanted, found = [list(rates) for _ in points], [[] for _ in points]
    for _ in range(1 + MAX_EXTENSIONS):
        cells = [
            {**point, RATE: rate}
            for point, mine in zip(points, wanted, strict=True)
            for rate in mine
        ]
        if not cells:
            break
        rows = run(cells)
        each, left = len(rows) // len(cells), iter(rows)
        for mine, tried in zip(found, wanted, strict=True):
            mine += itertools.islice(left, each * len(tried))
        wanted = [next_rates(mine) for mine in found]
    return [best_rate(mine) for mine in found], [row for mine in found for row in mine]


def best_rate(cells: Sequence[Row]) -> float:
    """The learning rate of the best mean accuracy; of equals, the one tried first."""
    by_rate: dict[float, list[float]] = {}
    for row in cells:  # a training that failed counts as 0
        by_rate.setdefault(row[RATE], []).append(row.get("accuracy", 0.0))
    return max(by_rate, key=lambda rate: np.mean(by_rate[rate]))


def next_rates(cells: Sequence[Row]) -> list[float]:
    """The rate to try beyond a grid whose best is at an end, if there is one.

    It is as far beyond as the best one is from its neighbour. None is tried above a rate at which
    a training diverged.
    """
    best, rates = best_rate(cells), sorted({row[RATE] for row in cells})
    found = []
    if best == rates[0]:
        found = [rates[0] * rates[0] / rates[1]]
    elif best == rates[-1] and not any(row.get("diverged") for row in cells if row[RATE] == best):
        found = [rates[-1] * rates[-1] / rates[-2]]
    return [float(f"{rate:.6g}") for rate in found]  # 0.05, not 0.0500...01
