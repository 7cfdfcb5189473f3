"""A training as a run that `fit` drives: chunks of steps, and a row of metrics for every epoch."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from edl_jax.errors import DivergedError
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import METRICS as METRICS_FILE, Row, RunFolder
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import METRICS
from edl_jax.training.optimizers import LOSS
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import TrainState, evaluated


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
      test_accuracy: accuracy on the test images after the last epoch, never the best epoch's.
      test_nll: mean negative log-likelihood on them, `-log softmax(logits)[label]`, in nats.
      test_calibration_error: expected calibration error on them, in [0, 1]: how far confidence, the
        largest probability, is from accuracy in 15 bins of equal width, averaged over the images.
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


class TrainingRun:
    """A run of steps from a seed; see `edl_jax.runs.fit.Run`."""

    unit, files, chunk = "step", (METRICS_FILE,), 100

    def __init__(self, config: TrainConfig, functions: TrainFunctions, seed: int):
        self.name, self.mesh = f"train {config.model}", functions.mesh
        self.period = functions.steps_per_epoch
        self.total = config.epochs * self.period
        self.init_key, self.key = jax.random.split(jax.random.key(seed))
        self.init = functions.init
        self._config, self._functions, self._seed = config, functions, seed
        self._seconds, self._images = 0.0, 0

    def advance(self, state: TrainState, n: int) -> tuple[TrainState, list[Row]]:
        """Take `n` steps; a `DivergedError` says in which of them the loss was not finite."""
        began = time.perf_counter()
        state = jax.block_until_ready(self._functions.advance(state, self.key, n))
        self._seconds += time.perf_counter() - began
        self._images += n * self._config.batch_size
        if (step := int(state.failed_step)) >= 0:
            raise DivergedError(
                f"training diverged: the loss or its gradient is not finite at step {step} (epoch "
                f"{step // self.period + 1}, seed {self._seed}), at a learning rate of "
                f"{float(self._functions.learning_rate(step)):.3g}. Lower learning_rate, lengthen "
                "warmup_epochs or set clip_norm."
            )
        return state, []

    def measure(self, state: TrainState) -> Row:
        """The row of an epoch that has just ended; see `TrainResult.history`."""
        evaluated_on = "val" if self._config.data.val_examples else "test"
        step, speed = int(state.step), self._images / self._seconds
        self._seconds, self._images = 0.0, 0
        return {
            "epoch": step // self.period,
            "train_loss": float(state.loss_sum) / self.period,
            "train_accuracy": int(state.correct) / (self.period * self._config.batch_size),
            **self._functions.evaluate(state, evaluated_on),
            "evaluated_on": evaluated_on,
            "learning_rate": float(self._functions.learning_rate(step - 1)),
            "images_per_second": speed,
        }

    def summary(self, row: Row) -> str:
        """Accuracy and speed."""
        accuracy, speed = row["accuracy"], row["images_per_second"]
        return f"{row['evaluated_on']} accuracy {accuracy:.3f}, {speed:.0f} images/s"


def run_training(
    config: TrainConfig,
    functions: TrainFunctions,
    seed: int,
    *,
    folder: RunFolder | None = None,
    progress: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    test: bool = True,
) -> TrainResult:
    """Train with functions made before; `report` is called with the row of every epoch.

    With validation images and without `test`, nothing looks at the test images, and what is
    measured on them is NaN.
    """
    run = TrainingRun(config, functions, seed)
    state, (rows,) = fit(
        run,
        run.init_key,
        folder=folder,
        progress=progress,
        watch=lambda done, state, row: report(row) if row else None,
    )
    if not config.data.val_examples:
        last = rows[-1]  # measured already, after the last epoch
    else:
        last = functions.evaluate(state, "test") if test else {}
    params, statistics = evaluated(state)
    return TrainResult(
        # None is what JSON has in place of NaN.
        **{f"test_{x}": math.nan if last.get(x) is None else last[x] for x in METRICS},
        history=rows,
        source=functions.dataset.source,
        params=params,
        statistics=statistics,
        loss_params=state.params[LOSS],
        loss_state=state.loss_state,
    )
