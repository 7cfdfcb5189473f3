"""What every contestant of the training benchmarks does, and our way to do it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import Run
from benchmarks.flops import product_flops, training_flops
from edl_jax import TrainConfig
from edl_jax.data.augmentation import Augmentation
from edl_jax.data.dataset import Dataset
from edl_jax.losses.by_name import resolve_loss
from edl_jax.models import MODELS
from edl_jax.runs.devices import device_mesh
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.steps import AXIS

NUM_CLASSES = 10
Precision = Literal["auto", "float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class TrainWork:
    """A training step: crop, flip, normalisation, forward, backward, update.

    Of uint8 images that live on the device, in a new random order every epoch; SGD with Nesterov's
    momentum 0.9, an L2 penalty and a learning rate of warm-up and cosine.

    Attributes:
      model: a residual network of basic blocks.
      batch_size: images of a step.
      width: channels of the first stage; None: the model's own.
      image_size: side of the images.
      num_batches: batches of an epoch.
      augmented: whether images are cropped and mirrored.
    """

    model: str
    batch_size: int
    width: int | None = None
    image_size: int = 32
    num_batches: int = 16
    augmented: bool = True

    def config(self, loss: str = "cross_entropy", precision: Precision = "auto") -> TrainConfig:
        """The same work as a configuration of ours."""
        return TrainConfig(
            loss=loss,
            model=self.model,
            width=self.width,
            batch_size=self.batch_size,
            epochs=1000,  # longer than anybody measures: the rate must not reach 0
            augmentation=Augmentation(crop=self.augmented, flip=self.augmented),
            precision=precision,
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
    def flops(self) -> int:
        """Of the convolutions and products of a step, forward and backward."""

        def forward(images: jax.Array) -> jax.Array:
            width = {} if self.width is None else {"width": self.width}
            model: Any = MODELS[self.model](num_classes=NUM_CLASSES, rngs=nnx.Rngs(0), **width)
            return model(images)

        shape = (self.batch_size, self.image_size, self.image_size, 3)
        return training_flops(product_flops(forward, jax.ShapeDtypeStruct(shape, jnp.float32)))


QUICK = TrainWork("resnet8", 8, width=2, image_size=8)
# Replaces something of a module while it lasts.
Patch = Callable[[], contextlib.AbstractContextManager[Any]]


def patch(module: Any, name: str, value: Any) -> Patch:
    """Another value for a name of a module."""
    return lambda: mock.patch.object(module, name, value)


def functions_of(work: TrainWork, config: TrainConfig, num_devices: int = 1) -> TrainFunctions:
    """Our functions of a training, on the first so many devices."""
    mesh = device_mesh(AXIS, jax.devices()[:num_devices])
    return TrainFunctions(config, work.dataset, resolve_loss(config.loss), mesh)


def our_run(functions: TrainFunctions, steps: int) -> Run:
    """Runs of so many steps; the result is the mean loss of the epoch so far."""
    key = jax.random.key(0)
    state, done = functions.init(key), 0

    def run(count: int) -> float:
        nonlocal state, done
        left = count * steps
        while left:
            now = min(left, functions.steps_per_epoch - done % functions.steps_per_epoch)
            state = functions.advance(state, key, now)
            left, done = left - now, done + now
        return float(state.loss_sum) / ((done - 1) % functions.steps_per_epoch + 1)

    return run


def our_training(
    work: TrainWork,
    steps: int,
    *,
    num_devices: int = 1,
    precision: Precision = "auto",
    patched: Patch = contextlib.nullcontext,
) -> Callable[[], Run]:
    """What starts a training of ours, with a part of it replaced while it is built and run."""

    def prepare() -> Run:
        with patched():
            config = work.config(precision=precision)
            inner = our_run(functions_of(work, config, num_devices), steps)

        def run(count: int) -> float:
            with patched():
                return inner(count)

        return run

    return prepare
