"""Train one classifier, or one for each of several seeds."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from edl_jax.checked import Seed, check, config_or_default
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.data.sources import ArraySource
from edl_jax.errors import ConfigError
from edl_jax.losses import MARGIN_LOSSES
from edl_jax.losses.by_name import Loss, resolve_loss, split_loss_name
from edl_jax.losses.method import LossMethod, as_method, check_loss
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import as_finite, as_json, open_run
from edl_jax.runs.processes import agree, all_do, first_does, is_first
from edl_jax.runs.storage import user_path
from edl_jax.training.config import TrainConfig
from edl_jax.training.loop import run_training
from edl_jax.training.metrics import Metrics
from edl_jax.training.optimizers import Optimizer
from edl_jax.training.programs import make_train
from edl_jax.training.result import Row, TrainResult
from edl_jax.training.steps import AXIS


def train(
    config: TrainConfig | None = None,
    *,
    loss: Loss | LossMethod | str | os.PathLike[str] | None = None,
    model: Callable[..., nnx.Module] | str | None = None,
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
      loss: in place of the one that `config.loss` names, another name, the path of a loss file,
        or the loss itself, such as `pretrain(...).loss`; takes logits `[batch, num_classes]`
        float32 and labels, `[batch]` int32 or, with mixup or cutmix, `[batch, num_classes]`
        float32, and gives losses `[batch]`, floating point. The `nnx.Param` of an `nnx.Module` are
        trained too; other variables that its call updates are carried from step to step, and
        updated once a step. A `LossMethod` says itself what it keeps.
      model: in place of the one that `config.model` names, another name, or a function or class
        that is called with `rngs`, `num_classes` and `in_channels` and gives an `nnx.Module`: it
        maps images `[batch, height, width, in_channels]`, in the compute dtype, to logits `[batch,
        num_classes]`.
      data: in place of `config.data`, another configuration, a name as in `DataConfig.name`, or
        images in memory.
      optimizer: in place of `config.optimizer`, one of optax, with a learning rate of its own; or a
        function that makes one of the schedule, such as `optax.adam`. It trains parameters
        `{"model": ..., "loss": ...}`, the second those of a loss that has some.
      run_dir: where to keep configuration, metrics, checkpoints and the result; a run that was
        stopped there resumes from its last checkpoint, and of one that is finished the result is
        given again. Nothing is written by default. Of several processes the first alone writes.
      devices: some of `jax.devices()`, which share every batch; all, of all processes, unless
        given.
      progress: whether to tell how far it is: by a bar on a terminal, by lines elsewhere.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      RunFolderError: if `run_dir` holds a run with another configuration, is in use by another
        run, is damaged, or cannot be read or written.
      Preempted: on SIGTERM, after the chunk of steps under way is saved; only with `run_dir`.
      ProcessError: if another process of the run is gone, or was given something else to do.
      DivergedError: if training diverges.
    """
    config, source = _with_data(_naming(config_or_default(config, TrainConfig), loss, model), data)
    path = None if run_dir is None else user_path(run_dir)
    mesh = device_mesh(AXIS, devices)
    _agree_on_config(config, mesh)
    dataset = load_shared(config.data, source)
    loss = _usable_loss(config, loss, dataset)
    parts = {"model": None if isinstance(model, str) else model, "optimizer": optimizer}

    def known_by() -> dict[str, Any]:  # hashes the images
        own = {name: describe(part) for name, part in parts.items() if part is not None}
        return {"data": dataset.identity, "loss": describe(loss), **own}

    agree(known_by)
    functions = make_train(config, dataset, loss, mesh, **parts)
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: (
                None
                if path is None
                else stack.enter_context(open_run(path, {"train": as_json(config), **known_by()}))
            ),
            share=False,
        )
        result = run_training(
            config,
            functions,
            config.seed,
            source=dataset.source,
            folder=folder,
            progress=progress and is_first(),
        )
        if folder is not None:
            found = {name: getattr(result, f"test_{name}") for name in Metrics._fields}
            test = as_finite({f"test_{name}": value for name, value in found.items()})
            folder.write_json("results.json", {**test, "data": result.source})
        return result


def make_trainer(
    config: TrainConfig,
    *,
    loss: Loss | LossMethod | str | os.PathLike[str] | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[..., list[TrainResult]]:
    """Build a function that trains from any seeds, compiled on first use.

    Each network is trained as by `train` with its seed; `config.seed` is not used.

    Args:
      config: how to train.
      loss: as of `train`.
      dataset: what `config` names, where it is loaded already: several trainers of one data set
        then hold one copy of it. Loaded by default.
      devices: as of `train`.

    Returns:
      `(seeds, *, report, progress, test) -> results`, in the order of the seeds; `report` is called
      with the row of metrics of every epoch of every seed as it ends, and without `test` nothing
      looks at the test images where there are validation images.

    Raises:
      ConfigError, DataError, LossFileError, ProcessError, EDLError: as of `train`; so does the
        function, and a `ConfigError` for a seed that is given twice, or is not a whole number of at
        least 0 and below 2^32.
    """
    if dataset is not None and not isinstance(dataset, Dataset):
        raise ConfigError(
            f"dataset is {dataset!r}; expected what load_dataset gives, or None to load it."
        )
    config = _naming(config_or_default(config, TrainConfig), loss)
    mesh = device_mesh(AXIS, devices)
    _agree_on_config(config, mesh)
    dataset = dataset or load_shared(config.data)
    loss = _usable_loss(config, loss, dataset)

    functions = make_train(config, dataset, loss, mesh)

    def run(
        seeds: Sequence[int],
        *,
        report: Callable[[Row], None] = lambda row: None,
        progress: bool = False,
        test: bool = True,
    ) -> list[TrainResult]:
        if not callable(report):
            raise ConfigError(f"report is {report!r}; expected a function of a row of metrics.")
        seeds = _different_seeds(seeds)
        agree(lambda: {"data": dataset.identity, "loss": describe(loss), "seeds": seeds})
        return [
            run_training(
                config,
                functions,
                seed,
                source=dataset.source,
                progress=progress and is_first(),
                report=report,
                test=test,
            )
            for seed in seeds
        ]

    return run


def _with_data(config: TrainConfig, data: Any) -> tuple[TrainConfig, ArraySource | None]:
    """The configuration with the data that is given, and images that are in memory."""
    if data is None:
        return config, None
    source = data if isinstance(data, ArraySource) else None
    data = data if source is None else source.name
    if isinstance(data, str):
        data = dataclasses.replace(config.data, name=data)
    return dataclasses.replace(config, data=check("data", data, DataConfig)), source


def _naming(config: TrainConfig, loss: Any, model: Any = None) -> TrainConfig:
    """The configuration with the loss and the model that are given by name or path, if any."""
    if isinstance(model, str):
        config = dataclasses.replace(config, model=model)
    if isinstance(loss, str | os.PathLike):
        return dataclasses.replace(config, loss=loss)
    if loss is not None:
        as_method(loss)  # refuses what is none before data is loaded
    return config


def _usable_loss(config: TrainConfig, loss: Any, dataset: Dataset) -> Loss | LossMethod:
    """The loss that is given, or the one that `config` names, checked."""
    if loss is None or isinstance(loss, str | os.PathLike):
        loss = resolve_config_loss(config, dataset)
    validates = check_loss(loss, dataset.num_classes, soft=config.augmentation.mixes)
    if validates and (dataset.streamed or not config.data.val_examples):
        raise ConfigError(
            f"the loss {type(loss).__qualname__} looks at validation images; TrainConfig.data has "
            f"val_examples {config.data.val_examples} and images are "
            f"{'streamed' if dataset.streamed else 'in memory'}; expected val_examples of at least "
            "1, and images in memory (stream False)."
        )
    return loss


def _different_seeds(seeds: Sequence[int]) -> list[int]:
    try:
        given = list(seeds)
    except TypeError as error:
        raise ConfigError(
            f"seeds is {seeds!r}; expected a list of seeds, such as [0, 1, 2]."
        ) from error
    found = [check("seed", seed, Seed) for seed in given]
    if len(set(found)) < len(found):
        twice = sorted({seed for seed in found if found.count(seed) > 1})
        raise ConfigError(
            f"seeds has {', '.join(map(str, twice[:5]))} more than once, which would give equal "
            "results; expected different seeds."
        )
    return found


def load_shared(config: DataConfig, source: ArraySource | None = None) -> Dataset:
    """The data set; of several processes the first prepares it."""
    prepared = first_does(lambda: load_dataset(config, source), share=False)
    return all_do(lambda: prepared or load_dataset(config, source))


def _agree_on_config(config: TrainConfig, mesh: Mesh) -> None:
    """Refuse processes with other settings; where the data lies may differ from host to host."""
    devices = [device.id for device in mesh.devices.flat]
    alike = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=None))
    agree(lambda: {"train": as_json(alike), "devices": devices})


def resolve_config_loss(config: TrainConfig, dataset: Dataset) -> Loss:
    """The loss that `config` names; a margin loss is told the scale of the head's cosines."""
    options = {}
    if split_loss_name(config.loss)[0] in MARGIN_LOSSES:
        options["scale"] = 1.0 if config.head_scale is None else config.head_scale
    return resolve_loss(config.loss, options, class_counts=dataset.class_counts)
