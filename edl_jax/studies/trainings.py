"""One training as a cell of a sweep, and the best learning rate of a grid of them."""

import dataclasses
import functools
import itertools
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.data.datasets import load_dataset
from edl_jax.errors import DivergedError
from edl_jax.losses.by_name import Loss
from edl_jax.runs.describing import describe
from edl_jax.training import TrainConfig, make_trainer
from edl_jax.training.training import resolve_config_loss

MEASURES = ("accuracy", "nll", "calibration_error")
RATE = "train.learning_rate"
MAX_EXTENSIONS = 4  # rates that may be tried beyond the grid
Row = Mapping[str, Any]


def measure_training(
    config: TrainConfig, *, test: bool, loss: Loss | None = None
) -> dict[str, Any]:
    """Train once, and measure on test images, or on validation images, after the last epoch.

    Gives `MEASURES`; `diverged`, with which a training counts with the accuracy of guessing and no
    other metric; and `epochs`, the accuracy after each epoch. A loss replaces the configuration's.
    """
    rows: list[dict[str, Any]] = []
    kind, data = dataclasses.replace(config, seed=0), load_dataset(config.data)
    if loss is None:
        told = f"{describe(resolve_config_loss(config, data))} on {data.digest}"
        train = kept_trainer(pickle.dumps(kind), told)
    else:
        train = make_trainer(kind, loss=loss)
    try:
        (result,) = train([config.seed], report=rows.append, test=test)
        last = rows[-1]
        found = {x: getattr(result, f"test_{x}") if test else last[x] for x in MEASURES}
        found["diverged"] = False
    except DivergedError:
        found = dict.fromkeys(MEASURES) | {"accuracy": 1 / data.num_classes, "diverged": True}
    # A training that diverged guesses in the epochs that it did not reach.
    epochs = [row["accuracy"] for row in rows] + [found["accuracy"]] * (config.epochs - len(rows))
    return {**found, "epochs": epochs}


@functools.lru_cache(maxsize=2)  # each holds compiled programs, which serve every seed
def kept_trainer(pickled: bytes, told: str) -> Any:
    """A trainer by its configuration, and by what its loss and data are, which may change."""
    del told
    return make_trainer(pickle.loads(pickled))


def tune(
    run: Callable[[Sequence[Row]], list[Any]], points: Sequence[Row], rates: Sequence[float]
) -> tuple[list[Any], list[Any]]:
    """Each point with its best learning rate, and all rows that were looked at.

    `run` gives equally many rows for each point of a list, in their order.
    """
    wanted, found = [list(rates) for _ in points], [[] for _ in points]
    for _ in range(1 + MAX_EXTENSIONS):
        tried = zip(points, wanted, strict=True)
        cells = [{**point, RATE: rate} for point, mine in tried for rate in mine]
        if not cells:
            break
        rows = run(cells)
        left, each = iter(rows), len(rows) // len(cells)
        for mine, rates in zip(found, wanted, strict=True):
            mine += itertools.islice(left, each * len(rates))
        wanted = [next_rates(mine) for mine in found]
    best = [{**point, RATE: best_rate(mine)} for point, mine in zip(points, found, strict=True)]
    return best, list(itertools.chain.from_iterable(found))


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
