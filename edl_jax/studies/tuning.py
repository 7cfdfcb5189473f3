"""Learning rates: the best of a grid, which grows where the best lies at its edge."""

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

    Args:
      run: `(points) -> rows`, as many rows for each point, in their order.
      points: what a rate is looked for, each by itself.
      rates: the grid, at least two.
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
        each = len(rows) // len(cells)
        for mine, tried in zip(found, wanted, strict=True):
            mine += rows[: each * len(tried)]
            rows = rows[each * len(tried) :]
        wanted = [next_rates(mine) for mine in found]
    return [best_rate(mine) for mine in found], [row for mine in found for row in mine]


def best_rate(cells: Sequence[Row]) -> float:
    """The learning rate of the best mean accuracy; of equals, the one tried first."""
    means = _mean_accuracies(cells)
    return max(means, key=lambda rate: means[rate])


def next_rates(cells: Sequence[Row]) -> list[float]:
    """The rate to try beyond a grid whose best is at an end, if there is one.

    It is as far beyond as the best one is from its neighbour. None is tried above a rate at which
    a training diverged.
    """
    best, rates = best_rate(cells), sorted(_mean_accuracies(cells))
    found = []
    if best == rates[0]:
        found = [rates[0] * rates[0] / rates[1]]
    elif best == rates[-1] and not any(row.get("diverged") for row in cells if row[RATE] == best):
        found = [rates[-1] * rates[-1] / rates[-2]]
    return [float(f"{rate:.6g}") for rate in found]  # 0.05, not 0.0500...01


def _mean_accuracies(cells: Sequence[Row]) -> dict[float, float]:
    """By rate; a training that failed counts as 0."""
    rates = dict.fromkeys(row[RATE] for row in cells)
    return {
        rate: float(np.mean([row.get("accuracy", 0.0) for row in cells if row[RATE] == rate]))
        for rate in rates
    }
