"""A training as a run that `fit` drives: chunks of steps, and a row of metrics for every epoch."""

import time
from collections.abc import Callable

import jax

from edl_jax.errors import DivergedError
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import METRICS, Row, RunFolder
from edl_jax.training.config import TrainConfig
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.result import TrainResult, epoch_row, train_result
from edl_jax.training.steps import TrainState

Watch = Callable[[int, TrainState, jax.Array], None]


class TrainingRun:
    """A run of steps; see `edl_jax.runs.fit.Run`."""

    unit, files = "step", (METRICS,)

    def __init__(self, config: TrainConfig, functions: TrainFunctions, seed: int):
        """Prepare a run from a seed."""
        per_epoch = functions.steps_per_epoch
        self.name, self.mesh = f"train {config.model}", functions.mesh
        self.total, self.period = config.epochs * per_epoch, per_epoch
        self.chunk = config.steps_per_chunk
        self.init_key, self.key = jax.random.split(jax.random.key(seed))
        self._config, self._functions, self._seed = config, functions, seed
        self._seconds, self._images = 0.0, 0

    def init(self, key: jax.Array) -> TrainState:
        """The classifier before the first step."""
        return self._functions.init(key)

    def advance(self, state: TrainState, n: int) -> tuple[TrainState, list[Row]]:
        """Take `n` steps.

        Raises:
          DivergedError: if the loss or its gradient is not finite in one of them.
        """
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
        """The row of an epoch."""
        speed = self._images / self._seconds
        self._seconds, self._images = 0.0, 0
        return epoch_row(self._config, self._functions, state, speed)

    def score(self, row: Row) -> float:
        """Never by test accuracy: that would be choosing on the test images."""
        return row["accuracy"] if row["evaluated_on"] == "val" else -row["train_loss"]

    def summary(self, row: Row) -> str:
        """Accuracy and speed."""
        return (
            f"{row['evaluated_on']} accuracy {row['accuracy']:.3f}, "
            f"{row['images_per_second']:.0f} images/s"
        )


def run_training(
    config: TrainConfig,
    functions: TrainFunctions,
    seed: int,
    *,
    source: str = "",
    folder: RunFolder | None = None,
    progress: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    test: bool = True,
    watch: Watch = lambda epoch, state, key: None,
) -> TrainResult:
    """Train with functions made before.

    Args:
      config: the settings that `functions` were made from.
      functions: from `make_train`.
      seed: of the training.
      source: says where the data comes from.
      folder: as of `fit`.
      progress: as of `fit`.
      report: called with the row of metrics of every epoch as it ends.
      test: whether to look at the test images at the end; with validation images and without this,
        nothing looks at them, and what is measured on them is NaN.
      watch: called with the epoch, the state and the key of the steps: with epoch 0 before the
        first step, then as every epoch ends. The state's buffers are given away afterwards.

    Raises:
      DivergedError: if the training diverges.
      Preempted, ProcessError, RunFolderError: as `fit`.
    """
    run = TrainingRun(config, functions, seed)

    def tell(done: int, state: TrainState, row: Row | None) -> None:
        watch(done // run.period, state, run.key)
        if row is not None:
            report(row)

    keep = config.keep_checkpoints
    found = fit(run, run.init_key, folder=folder, keep=keep, progress=progress, watch=tell)
    return train_result(config, functions, found.state, found.rows[0], source, test)
