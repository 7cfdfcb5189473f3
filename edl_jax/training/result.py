"""What a training gives: a row of metrics for each epoch, and in the end a result."""

import dataclasses
import math
from typing import Any

from edl_jax.runs.folder import Row
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import Metrics
from edl_jax.training.optimizers import LOSS
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import TrainState, evaluated


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
      loss_params: trained parameters of the loss: its state with None for all else; empty for most.
      loss_state: the rest of the loss's state after the last step, likewise.
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


def epoch_row(
    config: TrainConfig, functions: TrainFunctions, state: TrainState, images_per_second: float
) -> Row:
    """The row of an epoch that has just ended; see `TrainResult.history`."""
    evaluated_on = "val" if config.data.val_examples else "test"
    step, steps = int(state.step), functions.steps_per_epoch
    return {
        "epoch": step // steps,
        "train_loss": float(state.loss_sum) / steps,
        "train_accuracy": int(state.correct) / (steps * config.batch_size),
        **_floats(functions.evaluate(state, evaluated_on)),
        "evaluated_on": evaluated_on,
        "learning_rate": float(functions.learning_rate(step - 1)),
        "images_per_second": images_per_second,
    }


def train_result(
    config: TrainConfig,
    functions: TrainFunctions,
    state: TrainState,
    rows: list[Row],
    source: str,
    test: bool,
) -> TrainResult:
    """What a training that has ended gives; `rows` are of all epochs.

    With validation images and without `test`, nothing looks at the test images: what is measured on
    them is NaN.
    """
    if not config.data.val_examples:
        # Measured already, after the last epoch; JSON has no NaN.
        metrics = {name: math.nan if x is None else x for name, x in rows[-1].items()}
    elif test:
        metrics = _floats(functions.evaluate(state, "test"))
    else:
        metrics = dict.fromkeys(Metrics._fields, math.nan)
    params, statistics = evaluated(state)
    return TrainResult(
        **{f"test_{name}": float(metrics[name]) for name in Metrics._fields},
        history=rows,
        source=source,
        params=params,
        statistics=statistics,
        loss_params=state.params[LOSS],
        loss_state=state.loss_state,
    )


def _floats(metrics: Metrics) -> dict[str, float]:
    return {name: float(values[0]) for name, values in metrics._asdict().items()}
