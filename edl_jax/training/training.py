"""Train one classifier, or one for each of several seeds."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import MARGIN_LOSSES
from edl_jax.losses.by_name import Loss, resolve_loss, split_loss_name
from edl_jax.losses.method import check_callable, check_loss
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import as_finite, as_json, open_run
from edl_jax.runs.processes import agree, all_do, first_does, is_first
from edl_jax.runs.storage import user_path
from edl_jax.training.config import TrainConfig
from edl_jax.training.loop import run_training
from edl_jax.training.metrics import Metrics
from edl_jax.training.programs import TrainFunctions, make_train
from edl_jax.training.result import Row, TrainResult
from edl_jax.training.steps import AXIS
from edl_jax.validation import check_seed, config_or_default


def train(
    config: TrainConfig | None = None,
    *,
    loss: Loss | str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> TrainResult:
    """Train a classifier on real images with a loss.

    All devices share every batch. Several processes (see docs/scale.md) all call this alike.

    Args:
      config: how to train; the defaults unless given.
      loss: in place of the one that `config.loss` names, another name or the loss itself, such as
        `pretrain(...).loss`; takes logits `[batch, num_classes]` float32 and labels, `[batch]`
        int32 or, with mixup or cutmix, `[batch, num_classes]` float32, and gives losses `[batch]`,
        floating point. The `nnx.Param` of an `nnx.Module` are trained too; other variables that its
        call updates are carried from step to step.
      run_dir: where to keep configuration, metrics, checkpoints and the result; a run that was
        stopped there resumes from its last checkpoint, and of one that is finished the result is
        given again. Nothing is written unless given. Of several processes the first alone writes.
      devices: some of `jax.devices()`, which share every batch; all, of all processes, unless
        given.
      progress: whether to show a progress bar.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      RunFolderError: if `run_dir` holds a run with another configuration, is in use by another
        run, is damaged, or cannot be read or written.
      Preempted: on SIGTERM, after the chunk of steps under way is saved; only with `run_dir`.
      ProcessError: if another process of the run is gone, or was given something else to do.
      DivergedError: if training diverges.
    """
    config = _naming(config_or_default(config, TrainConfig), loss)
    path = None if run_dir is None else user_path(run_dir)
    mesh = device_mesh(AXIS, devices)
    _agree_on_config(config, mesh)
    dataset = load_config_dataset(config)
    loss = _usable_loss(config, loss, dataset)

    def known_by() -> dict[str, Any]:  # hashes the images
        return {"data": dataset.identity, "loss": describe(loss)}

    agree(known_by)
    functions = make_train(config, dataset, loss, mesh)
    with contextlib.ExitStack() as stack:
        folder = first_does(
            lambda: (
                None
                if path is None
                else stack.enter_context(open_run(path, {"train": as_json(config), **known_by()}))
            ),
            share=False,
        )
        (result,) = run_training(
            config,
            functions,
            [config.seed],
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
    loss: Loss | str | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[Any] | None = None,
    seeds_at_a_time: int = 1,
) -> Callable[..., list[TrainResult]]:
    """Build a function that trains from any seeds, compiled on first use.

    Each network is trained as by `train` with its seed; `config.seed` is not used.

    Args:
      config: how to train.
      loss: as of `train`.
      dataset: what `config` names, where it is loaded already: several trainers of one data set
        then hold one copy of it. Loaded unless given.
      devices: as of `train`.
      seeds_at_a_time: seeds in one program, for images in memory. More than one pays only where a
        step is too small to keep the device busy: see docs/speed.md.

    Returns:
      `(seeds, *, report, progress, test) -> results`, in the order of the seeds; `report` is called
      with the row of metrics of every epoch of every seed as it ends, and without `test` nothing
      looks at the test images where there are validation images.

    Raises:
      ConfigError, DataError, LossFileError, ProcessError, EDLError: as of `train`; so does the
        function, and a `ConfigError` for a seed that is given twice, or is not a whole number of at
        least 0 and below 2^32.
    """
    if type(seeds_at_a_time) is not int or seeds_at_a_time < 1:
        raise ConfigError(
            f"seeds_at_a_time is {seeds_at_a_time!r}; expected a whole number of at least 1."
        )
    config = _naming(config, loss)
    mesh = device_mesh(AXIS, devices)
    _agree_on_config(config, mesh)
    dataset = dataset or load_config_dataset(config)
    loss = _usable_loss(config, loss, dataset)

    @functools.cache
    def made(count: int) -> TrainFunctions:
        return make_train(config, dataset, loss, mesh, num_seeds=None if count == 1 else count)

    def run(
        seeds: Sequence[int],
        *,
        report: Callable[[Row], None] = lambda row: None,
        progress: bool = False,
        test: bool = True,
    ) -> list[TrainResult]:
        seeds = _different_seeds(seeds)
        agree(lambda: {"data": dataset.identity, "loss": describe(loss), "seeds": seeds})
        firsts = range(0, len(seeds), seeds_at_a_time)
        groups = [seeds[first : first + seeds_at_a_time] for first in firsts]
        return [
            result
            for group in groups
            for result in run_training(
                config,
                made(len(group)),
                group,
                source=dataset.source,
                progress=progress and is_first(),
                report=report,
                test=test,
            )
        ]

    return run


def _naming(config: TrainConfig, loss: Any) -> TrainConfig:
    """The configuration with the loss that is given by name, if one is."""
    if isinstance(loss, str):
        return dataclasses.replace(config, loss=loss)
    if loss is not None:
        check_callable(loss)
    return config


def _usable_loss(config: TrainConfig, loss: Any, dataset: Dataset) -> Loss:
    """The loss that is given, or the one that `config` names, checked."""
    if loss is None or isinstance(loss, str):
        loss = resolve_config_loss(config, dataset)
    check_loss(loss, dataset.num_classes, soft=config.augmentation.mixes)
    return loss


def _different_seeds(seeds: Sequence[int]) -> list[int]:
    found = [check_seed("seed", seed) for seed in seeds]
    if len(set(found)) < len(found):
        twice = sorted({seed for seed in found if found.count(seed) > 1})
        raise ConfigError(
            f"seeds has {', '.join(map(str, twice[:5]))} more than once, which would give equal "
            "results; expected different seeds."
        )
    return found


def load_config_dataset(config: TrainConfig) -> Dataset:
    """The data set that `config` names; of several processes the first prepares it."""

    def load() -> Dataset:
        return load_dataset(
            config.dataset,
            data_dir=config.data_dir,
            train_examples=config.train_examples,
            val_examples=config.val_examples,
            test_examples=config.test_examples,
            split_seed=config.split_seed,
            image_size=config.image_size,
            label_noise=config.label_noise,
            noise_rate=config.noise_rate,
            imbalance=config.imbalance,
            imbalance_factor=config.imbalance_factor,
            corruption_seed=config.corruption_seed,
            stream=config.stream,
        )

    prepared = first_does(load, share=False)
    return all_do(lambda: prepared or load())


def _agree_on_config(config: TrainConfig, mesh: Mesh) -> None:
    """Refuse processes with other settings; where the data lies may differ from host to host."""
    devices = [device.id for device in mesh.devices.flat]
    agree(lambda: {"train": as_json(config) | {"data_dir": None}, "devices": devices})


def resolve_config_loss(config: TrainConfig, dataset: Dataset) -> Loss:
    """The loss that `config` names; a margin loss is told the scale of the head's cosines."""
    options = {}
    if split_loss_name(config.loss)[0] in MARGIN_LOSSES:
        options["scale"] = 1.0 if config.head_scale is None else config.head_scale
    return resolve_loss(config.loss, options, class_counts=dataset.class_counts)
