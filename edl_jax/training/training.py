"""Train a classifier, or several that differ in their seeds."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from edl_jax.checked import Distinct, Seed, check, config_or_default
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.data.sources import ArraySource
from edl_jax.losses import MARGIN_LOSSES
from edl_jax.losses.by_name import Loss, resolve_loss, split_loss_name
from edl_jax.losses.method import LossMethod, as_method
from edl_jax.models import ModelFactory
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import RunFolder, as_finite, as_json, open_run
from edl_jax.runs.processes import agree, all_do, first_does, is_first
from edl_jax.training.config import TrainConfig
from edl_jax.training.loop import Row, TrainResult, run_training
from edl_jax.training.metrics import METRICS
from edl_jax.training.optimizers import Optimizer
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import AXIS


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
    config, functions, known_by = _prepare(config, loss, model, data, optimizer, devices)
    with contextlib.ExitStack() as stack:

        def open_folder() -> RunFolder | None:
            if run_dir is None:
                return None
            return stack.enter_context(open_run(run_dir, {"train": as_json(config), **known_by()}))

        folder = first_does(open_folder, share=False)
        telling = progress and is_first()
        result = run_training(config, functions, config.seed, folder=folder, progress=telling)
        if folder is not None:
            measured = as_finite({f"test_{x}": getattr(result, f"test_{x}") for x in METRICS})
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
    config, functions, _ = _prepare(config, loss, model, data, optimizer, devices)

    def run(
        seeds: Sequence[int],
        *,
        report: Callable[[Row], None] = lambda row: None,
        progress: bool = False,
        test: bool = True,
    ) -> list[TrainResult]:
        given = np.asarray(seeds).tolist()
        different = check("seeds", given, Annotated[tuple[Seed, ...], Distinct()])
        agree(lambda: {"seeds": different})
        options = {"report": report, "progress": progress and is_first(), "test": test}
        return [run_training(config, functions, seed, **options) for seed in different]

    return run


def _prepare(
    config: Any, loss: Any, model: Any, data: Any, optimizer: Any, devices: Any
) -> tuple[TrainConfig, TrainFunctions, Callable[[], dict[str, Any]]]:
    """The configuration with what is given by name, its functions, and the parts' identities."""
    config, source, named = config_or_default(config, TrainConfig), None, {}
    if isinstance(model, str):
        named["model"], model = model, None
    if isinstance(loss, str | os.PathLike):
        named["loss"], loss = loss, None
    elif loss is not None:
        as_method(loss)  # refuses what is none before data is loaded
    if isinstance(data, ArraySource):
        source, data = data, data.name
    if data is not None:
        is_name = isinstance(data, str)
        named["data"] = dataclasses.replace(config.data, name=data) if is_name else data
    config = dataclasses.replace(config, **named)

    mesh = device_mesh(AXIS, devices)
    # Where the data lies may differ from host to host.
    placeless = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=None))
    ids = [device.id for device in mesh.devices.flat]
    agree(lambda: {"train": as_json(placeless), "devices": ids})
    dataset = load_shared(config.data, source)
    loss = resolve_config_loss(config, dataset) if loss is None else loss
    parts = {"model": model, "optimizer": optimizer}
    functions = TrainFunctions(config, dataset, loss, mesh, **parts)

    def known_by() -> dict[str, Any]:  # hashes the images
        own = {name: describe(part) for name, part in parts.items() if part is not None}
        return {"data": dataset.identity, "loss": describe(loss), **own}

    agree(known_by)
    return config, functions, known_by


def load_shared(config: DataConfig, source: ArraySource | None = None) -> Dataset:
    """The data set; of several processes the first prepares it."""
    prepared = first_does(lambda: load_dataset(config, source), share=False)
    return all_do(lambda: prepared or load_dataset(config, source))


def resolve_config_loss(config: TrainConfig, dataset: Dataset) -> Loss:
    """The loss that `config` names; a margin loss is told the scale of the head's cosines."""
    options = {}
    if split_loss_name(config.loss)[0] in MARGIN_LOSSES:
        options["scale"] = 1.0 if config.head_scale is None else config.head_scale
    return resolve_loss(config.loss, options, class_counts=dataset.class_counts)
