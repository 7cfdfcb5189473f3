"""One training as a cell of a sweep."""

import dataclasses
import functools
import pickle
from typing import Any

from edl_jax.data.datasets import load_dataset
from edl_jax.errors import DivergedError
from edl_jax.losses.by_name import Loss
from edl_jax.runs.describing import describe
from edl_jax.training import TrainConfig, make_trainer
from edl_jax.training.training import resolve_config_loss

MEASURES = ("accuracy", "nll", "calibration_error")


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
