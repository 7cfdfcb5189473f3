"""What a training gives: a row of metrics for each epoch, and in the end a result."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import Metrics
from edl_jax.training.optimizers import LOSS
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import TrainState, evaluated

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Attributes:
      test_accuracy: accuracy on the test images after the last epoch, never the best epoch's.
      test_nll: mean negative log-likelihood on them, in nats.
      test_calibration_error: expected calibration error on them, in [0, 1].
      history: a row of metrics for each epoch: `epoch`, `train_loss`, `train_accuracy`;
        `accuracy`, `nll` and `calibration_error` (on the held-out validation images where there are
        any, on the test images otherwise; `evaluated_on` says which); `learning_rate` and
        `images_per_second` (of the steps alone; compilation included).
      source: a sentence that says which data was used.
      params: the classifier's parameters that were evaluated, an NNX state: trained, or their
        moving average.
      statistics: batch-norm statistics likewise.
      loss_params: trained parameters of the loss, an NNX state; empty for most losses.
      loss_state: other variables of the loss after the last step, an NNX state; empty for most.
    """

    test_accuracy: float
    test_nll: float
    test_calibration_error: float
    history: list[Row]
    source: str
    params: Any
    statistics: Any
    loss_params: Any
    loss_state: Any


def epoch_rows(
    config: TrainConfig,
    functions: TrainFunctions,
    state: TrainState,
    seeds: Sequence[int],
    epoch: int,
    images_per_second: float,
) -> list[Row]:
    """The row of an epoch that has just ended, for each seed; see `TrainResult.history`."""
    evaluated_on = "val" if config.data.val_examples else "test"
    metrics = functions.evaluate(state, evaluated_on)
    loss_sums, corrects, steps = map(
        np.atleast_1d, jax.device_get((state.loss_sum, state.correct, state.step))
    )
    images = functions.steps_per_epoch * config.batch_size
    return [
        {
            "epoch": epoch,
            "train_loss": float(loss_sums[i]) / functions.steps_per_epoch,
            "train_accuracy": int(corrects[i]) / images,
            **{name: float(values[i]) for name, values in metrics._asdict().items()},
            "evaluated_on": evaluated_on,
            "learning_rate": float(functions.learning_rate(int(steps[i]) - 1)),
            "images_per_second": images_per_second,
        }
        for i in range(len(seeds))
    ]


def train_results(
    config: TrainConfig,
    functions: TrainFunctions,
    state: TrainState,
    seeds: Sequence[int],
    rows: list[Row],
    source: str,
    test: bool,
) -> list[TrainResult]:
    """What a training that has ended gives, for each seed; `rows` are of all epochs.

    With validation images and without `test`, nothing looks at the test images: what is measured on
    them is NaN.
    """
    if not config.data.val_examples:  # measured already, after the last epoch
        last = rows[-len(seeds) :]
        metrics = Metrics(*(np.asarray([x[name] for x in last], float) for name in Metrics._fields))
    elif test:
        metrics = functions.evaluate(state, "test")
    else:
        metrics = Metrics(*[np.full(len(seeds), np.nan)] * 3)
    results = []
    for i in range(len(seeds)):
        mine = state if functions.num_seeds is None else jax.tree.map(lambda x, i=i: x[i], state)
        params, statistics = evaluated(mine)
        results.append(
            TrainResult(
                **{f"test_{name}": float(x[i]) for name, x in metrics._asdict().items()},
                history=rows[i :: len(seeds)],
                source=source,
                params=params,
                statistics=statistics,
                loss_params=mine.params[LOSS],
                loss_state=mine.loss_state,
            )
        )
    return results
