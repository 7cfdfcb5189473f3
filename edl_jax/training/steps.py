"""The compiled functions of a training: pure functions of the state and the data on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from edl_jax.errors import ConfigError
from edl_jax.training.augmentation import augment, normalize
from edl_jax.training.config import TrainConfig
from edl_jax.training.datasets import Dataset
from edl_jax.training.losses import Loss
from edl_jax.training.resnet import create_model

_EVAL_BATCH = 1000
Batch = tuple[jax.Array, jax.Array]  # images and labels


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      params: trainable parameters, float32.
      statistics: batch-norm statistics, float32.
      optimizer: optax state.
      step: steps taken so far, int32 scalar.
      loss_sum: sum of the steps' mean losses since the epoch began, float32 scalar.
      correct: training images classified correctly since the epoch began, int32 scalar.
    """

    params: Any
    statistics: Any
    optimizer: optax.OptState
    step: jax.Array
    loss_sum: jax.Array
    correct: jax.Array


class TrainFunctions(NamedTuple):
    """The functions of a training, compiled on first use.

    Attributes:
      init: `(key) -> state`.
      epoch: `(state, key) -> state`, one pass over the training images; donates the state.
      accuracy: `(state, split) -> accuracy` in [0, 1], a float; the split is "val" or "test".
      images_per_epoch: training images in an epoch's whole batches.
      learning_rate: `(step) -> learning rate`.
    """

    init: Callable[[jax.Array], TrainState]
    epoch: Callable[[TrainState, jax.Array], TrainState]
    accuracy: Callable[[TrainState, str], float]
    images_per_epoch: int
    learning_rate: Callable[[int], Any]


def make_train(config: TrainConfig, dataset: Dataset, loss: Loss) -> TrainFunctions:
    """Build the functions of a training; one set serves every seed.

    On accelerators the body computes in bfloat16 and an epoch is one `lax.scan`. On the CPU it
    computes in float32 and steps are looped from Python, because XLA's CPU backend runs a
    convolution inside a loop many times slower than outside.

    Raises:
      ConfigError: if there are fewer training images than a batch.
    """
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    num_train, *_, channels = dataset.train_images.shape
    steps_per_epoch = num_train // config.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"TrainConfig.batch_size is {config.batch_size} with {num_train} training images; "
            "expected at most as many as there are images."
        )
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        # At least a step of decay, also where the warm-up is the whole training.
        decay_steps=max(config.epochs * steps_per_epoch, warmup_steps + 1),
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )

    def build(key: jax.Array) -> nnx.Module:
        return create_model(
            config.model,
            width=config.width,
            num_classes=dataset.num_classes,
            in_channels=channels,
            dtype=dtype,
            rngs=nnx.Rngs(key),
        )

    graphdef = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))), nnx.Param, ...)[0]
    data = jax.device_put((dataset.train_images, dataset.train_labels))

    def init(key: jax.Array) -> TrainState:
        _, params, statistics = nnx.split(build(key), nnx.Param, ...)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, statistics, optimizer.init(params), zero, jnp.zeros(()), zero)

    def step(state: TrainState, key: jax.Array, order: jax.Array, data: Batch) -> TrainState:
        """One step on the next batch in `order`, `[num_train]`; `data` is all images and labels."""
        start = (state.step % steps_per_epoch) * config.batch_size
        batch = jax.lax.dynamic_slice_in_dim(order, start, config.batch_size)
        images, labels = data[0][batch], data[1][batch]
        if config.augment:
            images = augment(
                jax.random.fold_in(key, state.step),
                images,
                padding=dataset.crop_padding,
                flip=dataset.flip,
            )
        images = normalize(images, dataset.mean, dataset.std, dtype)

        def objective(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            # Copied, because a model may only update variables made at its own level of tracing.
            model = nnx.merge(graphdef, params, state.statistics, copy=True)
            model.train()
            logits = model(images)
            statistics = nnx.state(model, nnx.Not(nnx.Param))
            return loss(logits, labels).mean(), (statistics, logits)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (statistics, logits)), gradient = value_and_grad(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
        return TrainState(
            optax.apply_updates(state.params, updates),
            statistics,
            optimizer_state,
            state.step + 1,
            state.loss_sum + value,
            state.correct + correct,
        )

    def begin_epoch(state: TrainState, key: jax.Array) -> tuple[TrainState, jax.Array]:
        order = jax.random.permutation(jax.random.fold_in(key, state.step), num_train)
        zero = jnp.zeros((), jnp.int32)
        return state._replace(loss_sum=jnp.zeros(()), correct=zero), order

    def scanned_epoch(state: TrainState, key: jax.Array, data: Batch) -> TrainState:
        state, order = begin_epoch(state, key)

        def body(state: TrainState, _: None) -> tuple[TrainState, None]:
            return step(state, key, order, data), None

        return jax.lax.scan(body, state, length=steps_per_epoch)[0]

    jitted_epoch = jax.jit(scanned_epoch, donate_argnums=0)
    jitted_begin = jax.jit(begin_epoch, donate_argnums=0)
    jitted_step = jax.jit(step, donate_argnums=0)

    def epoch(state: TrainState, key: jax.Array) -> TrainState:
        if not on_cpu:
            return jitted_epoch(state, key, data)
        state, order = jitted_begin(state, key)
        for _ in range(steps_per_epoch):
            state = jitted_step(state, key, order, data)
        return state

    held_out = {
        "val": _on_device(dataset.val_images, dataset.val_labels),
        "test": _on_device(dataset.test_images, dataset.test_labels),
    }

    @jax.jit
    def count_correct(state: TrainState, batches: Batch, index: jax.Array) -> jax.Array:
        images, labels = batches[0][index], batches[1][index]
        model = nnx.merge(graphdef, state.params, state.statistics)
        model.eval()
        logits = model(normalize(images, dataset.mean, dataset.std, dtype))
        return jnp.sum(jnp.argmax(logits, axis=-1) == labels)

    def accuracy(state: TrainState, split: str) -> float:
        batches = held_out[split]
        counts = [count_correct(state, batches, index) for index in range(len(batches[0]))]
        return float(sum(counts)) / len(getattr(dataset, f"{split}_labels"))

    return TrainFunctions(
        jax.jit(init), epoch, accuracy, steps_per_epoch * config.batch_size, schedule
    )


def _on_device(images: np.ndarray, labels: np.ndarray) -> Batch:
    """Images and labels in batches, `[batches, batch, ...]`, put on the device.

    A last short batch is filled up with labels that no prediction matches.
    """
    size = max(min(_EVAL_BATCH, len(labels)), 1)
    missing = -len(labels) % size
    images = np.pad(images, [(0, missing)] + [(0, 0)] * 3)
    labels = np.pad(labels, (0, missing), constant_values=-1)
    return jax.device_put((images.reshape(-1, size, *images.shape[1:]), labels.reshape(-1, size)))
