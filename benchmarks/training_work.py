"""What every contestant of the training benchmarks does, and our way to do it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import Run
from edl_jax import TrainConfig
from edl_jax.data.augmentation import Augmentation
from edl_jax.data.datasets import Dataset
from edl_jax.losses.by_name import resolve_loss
from edl_jax.models import MODELS, layers
from edl_jax.runs.devices import device_mesh
from edl_jax.training.learner import AXIS, Learner
from edl_jax.training.trainer import Trainer

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class TrainWork:
    """A training step: crop, flip, normalisation, forward, backward, update.

    The images are uint8, live on the device and are in a new order every epoch. SGD has Nesterov's
    momentum 0.9, an L2 penalty, warm-up and cosine decay.
    """

    model: str
    batch_size: int
    width: int | None = None  # channels of the first stage; None: the model's own
    image_size: int = 32
    num_batches: int = 16  # of an epoch
    augmented: bool = True

    def config(self, loss: str = "cross_entropy") -> TrainConfig:
        """The same work as a configuration of ours."""
        return TrainConfig(
            loss=loss,
            model=self.model,
            width=self.width,
            batch_size=self.batch_size,
            epochs=1000,  # longer than anybody measures: the rate must not reach 0
            augmentation=Augmentation(crop=self.augmented, flip=self.augmented),
        )

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Random images and labels."""
        rng = np.random.default_rng(0)
        count, side = self.batch_size * self.num_batches, self.image_size
        images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        labels = rng.integers(0, NUM_CLASSES, count).astype(np.int32)
        parts = {f"{part}_images": images[:1] for part in ("val", "test")}
        parts |= {f"{part}_labels": labels[:1] for part in ("val", "test")}
        return Dataset(
            name="random",
            train_images=images,
            train_labels=labels,
            class_names=tuple(map(str, range(NUM_CLASSES))),
            crop_padding=max(side // 8, 1),
            flip=True,
            source="random images",
            mean=np.full(3, 0.5, np.float32),
            std=np.full(3, 0.29, np.float32),
            **parts,
        )

    @property
    def flops(self) -> float:
        """Of a step by XLA's count of the forward pass, three times: backward costs twice it."""

        def forward(images: jax.Array) -> Any:
            width = {} if self.width is None else {"width": self.width}
            model = MODELS[self.model](num_classes=NUM_CLASSES, rngs=nnx.Rngs(0), **width)
            return model(images)

        shape = (self.batch_size, self.image_size, self.image_size, 3)
        cost = jax.jit(forward).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).cost_analysis()
        return 3 * (cost or {})["flops"]


def works(quick: bool) -> list[TrainWork]:
    """What is measured on this backend."""
    if quick:
        return [TrainWork("resnet8", 8, width=2, image_size=8)]
    if jax.default_backend() == "cpu":
        return [TrainWork("resnet8", 128), TrainWork("resnet20", 128)]
    return [TrainWork("resnet18", 512), TrainWork("resnet18", 1024), TrainWork("resnet8", 128)]


def steps_of_a_run() -> int:
    """How many steps are timed together."""
    return 4 if jax.default_backend() == "cpu" else 16


def trainer_of(work: TrainWork, config: TrainConfig, num_devices: int = 1) -> Trainer:
    """Our trainer, on the first so many devices."""
    mesh = device_mesh(AXIS, jax.devices()[:num_devices])
    return Trainer(Learner(config, work.dataset, resolve_loss(config.loss), mesh))


def our_run(trainer: Trainer, steps: int) -> Run:
    """Runs of so many steps; the result is the mean loss of the epoch so far."""
    key = jax.random.key(0)
    state, done = trainer.init(key), 0

    def run(count: int) -> float:
        nonlocal state, done
        left = count * steps
        while left:
            now = min(left, trainer.period - done % trainer.period)
            state = trainer.take_steps(state, key, now)
            left, done = left - now, done + now
        return float(state.loss_sum) / ((done - 1) % trainer.period + 1)

    return run


def our_training(
    work: TrainWork,
    steps: int,
    *,
    loss: str = "cross_entropy",
    num_devices: int = 1,
    xla_gradients: bool = False,
) -> Callable[[], Run]:
    """What starts a training of ours; a run is so many steps.

    With `xla_gradients` convolutions have XLA's own weight gradients.
    """

    def prepare() -> Run:
        patch = contextlib.nullcontext()
        if xla_gradients:
            patch = mock.patch.object(layers, "convolve", jax.lax.conv_general_dilated)
        with patch:
            run = our_run(trainer_of(work, work.config(loss), num_devices), steps)
            run(1)  # the step is traced here, and never again
        return run

    return prepare
