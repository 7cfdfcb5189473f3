"""Train a classifier, or several that differ in their seeds."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from flax import nnx

from edl_jax.checked import Distinct, Seed, check, config_or_default
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.data.sources import ArraySource
from edl_jax.losses.by_name import Loss, resolve_loss, scale_of
from edl_jax.losses.method import LossMethod
from edl_jax.models import ModelFactory
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import Row, RunFolder, as_finite, as_json, open_run
from edl_jax.runs.processes import agree, all_do, first_does, is_first
from edl_jax.training.config import TrainConfig
from edl_jax.training.learner import AXIS, Learner, evaluated
from edl_jax.training.metrics import MEASURES
from edl_jax.training.optimizers import LOSS, Optimizer
from edl_jax.training.trainer import Trainer


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
    params: nnx.State
    statistics: nnx.State
    loss_params: Any
    loss_state: Any


def train(
    config: TrainConfig | None = None,
    *,
    loss: Loss | LossMethod | str | os.PathLike[str] | None = None,
    model: ModelFactory | str | None = None,
    data: ArraySource | DataConfig | str | None = None,
    optimizer: Optimizer | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train a classifier on real images with a loss.

    All devices share every batch. Several processes (see docs/scale.md) all call this alike.

    Args:
      config: how to train; the defaults if None.
      loss: in place of `config.loss`, another name or path, or the loss itself, such as
        `pretrain(...).loss`: a function of logits `[batch, num_classes]` float32 and labels,
        `[batch]` int32 or, with mixup or cutmix, `[batch, num_classes]` float32, that gives losses
        `[batch]`, floating point; or an `nnx.Module` that is called so. Its `nnx.Param` are trained
        too; other variables that its call updates are carried from step to step, and updated once a
        step. A `LossMethod` says itself what it keeps.
      model: in place of `config.model`, another name, or a function or class that takes `rngs`,
        `num_classes` and `in_channels` and gives an `nnx.Module`, which maps images `[batch,
        height, width, in_channels]`, in the compute dtype, to logits `[batch, num_classes]`.
      data: in place of `config.data`, another configuration, a name as in `DataConfig.name`, or
        images in memory.
      optimizer: in place of `config.optimizer`, one of optax, with a learning rate of its own; or a
        function that makes one of the schedule, such as `optax.adam`. It trains parameters
        `{"model": ..., "loss": ...}`, the second those of a loss that has some.
      run_dir: where to keep configuration, metrics, checkpoints and the result; nowhere by default.
        A run that was stopped there resumes; of one that is finished the result is given again. Of
        several processes the first alone writes.
      devices: some of `jax.devices()`; by default all, of all processes.
      progress: whether to tell how far it is: by a bar on a terminal, by lines elsewhere.

    Raises:
      ConfigError, DataError, LossFileError: if a name, an object or a file cannot be used.
      RunFolderError: if `run_dir` holds a run with another configuration, is in use, is damaged,
        or cannot be read or written.
      Preempted: on SIGTERM, after the chunk of steps under way is saved; only with `run_dir`.
      ProcessError: if another process of the run is gone, or was given something else to do.
      DivergedError: if training diverges.
    """
    learner = _prepare(config, loss, model, data, optimizer, devices)
    identity = lambda: {"train": learner.config, **learner.identity()}  # noqa: E731
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: None if run_dir is None else stack.enter_context(open_run(run_dir, identity())),
            share=False,
        )
        options = {"folder": folder, "progress": progress and is_first()}
        result = run_training(Trainer(learner), learner.config.seed, **options)
        if folder is not None:
            measured = as_finite({f"test_{x}": getattr(result, f"test_{x}") for x in MEASURES})
            folder.write_json("results.json", {**measured, "data": result.source})
        return result


def make_trainer(
    config: TrainConfig | None = None,
    *,
    loss: Loss | LossMethod | str | os.PathLike[str] | None = None,
    model: ModelFactory | str | None = None,
    data: ArraySource | DataConfig | str | None = None,
    optimizer: Optimizer | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[..., list[TrainResult]]:
    """Build a function that trains from any seeds, compiled on first use.

    Each network is trained as by `train`, whose arguments these are, with its seed; `config.seed`
    is not used.

    Returns:
      `(seeds, *, report, progress, test) -> results`, in the order of the seeds; `report` is called
      with the row of metrics of every epoch of every seed as it ends, and without `test` nothing
      looks at the test images where there are validation images.

    Raises:
      EDLError: as `train`; so does the function, and for a seed that is given twice, or is not a
        whole number of at least 0 and below 2^32.
    """
    trainer = Trainer(_prepare(config, loss, model, data, optimizer, devices))

    def run(
        seeds: Sequence[int],
        *,
        report: Callable[[Row], None] = lambda row: None,
        progress: bool = False,
        test: bool = True,
    ) -> list[TrainResult]:
        listed = np.asarray(seeds).tolist()
        checked = check("seeds", listed, Annotated[tuple[Seed, ...], Distinct()])
        agree(lambda: {"seeds": checked})
        options = {"report": report, "progress": progress and is_first(), "test": test}
        return [run_training(trainer, seed, **options) for seed in checked]

    return run


def run_training(
    trainer: Trainer,
    seed: int,
    *,
    folder: RunFolder | None = None,
    progress: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    test: bool = True,
) -> TrainResult:
    """Train from a seed; `report` is called with the row of every epoch.

    With validation images and without `test`, nothing looks at the test images, and what is
    measured on them is NaN.
    """
    run, key = trainer.of_seed(seed)
    watch = lambda done, state, row: report(row) if row else None  # noqa: E731
    state, (rows,) = fit(run, key, folder=folder, progress=progress, watch=watch)
    if not trainer.config.data.val_examples:
        last = rows[-1]  # measured already, after the last epoch
    else:
        last = trainer.evaluate(state, "test") if test else {}
    params, statistics = evaluated(state)
    return TrainResult(
        # None is what JSON has in place of NaN.
        **{f"test_{x}": math.nan if last.get(x) is None else last[x] for x in MEASURES},
        history=rows,
        source=trainer.dataset.source,
        params=params,
        statistics=statistics,
        loss_params=state.params[LOSS],
        loss_state=state.loss_state,
    )


def _prepare(
    config: Any, loss: Any, model: Any, data: Any, optimizer: Any, devices: Any
) -> Learner:
    """What `train` is to train: names take the place of the configuration's, and data is loaded."""
    config, source, named = config_or_default(config, TrainConfig), None, {}
    if isinstance(model, str):
        named["model"], model = model, None
    if isinstance(loss, str | os.PathLike):
        named["loss"], loss = loss, None
    if isinstance(data, ArraySource):
        source, data = data, data.name
    if data is not None:
        is_name = isinstance(data, str)
        named["data"] = dataclasses.replace(config.data, name=data) if is_name else data
    config = dataclasses.replace(config, **named) if named else config

    mesh = device_mesh(AXIS, devices)
    # Where the data lies may differ from host to host.
    placeless = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=None))
    ids = [device.id for device in mesh.devices.flat]
    agree(lambda: {"train": as_json(placeless), "devices": ids})
    dataset = load_shared(config.data, source)
    loss = resolve_config_loss(config, dataset) if loss is None else loss
    learner = Learner(config, dataset, loss, mesh, model=model, optimizer=optimizer)
    agree(learner.identity)
    return learner


def load_shared(config: DataConfig, source: ArraySource | None = None) -> Dataset:
    """The data set; of several processes the first prepares it."""
    prepared = first_does(lambda: load_dataset(config, source), share=False)
    return all_do(lambda: prepared or load_dataset(config, source))


def resolve_config_loss(config: TrainConfig, dataset: Dataset) -> Loss:
    """The loss that `config` names, with the scale of the head's cosines if it takes that."""
    options = {}
    if scale_of(config.loss):
        options["scale"] = 1.0 if config.head_scale is None else config.head_scale
    return resolve_loss(config.loss, options, class_counts=dataset.class_counts)
