"""One training step and one evaluation, as pure functions of one device's share of a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from edl_jax.data.augmentation import normalize, prepare
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError
from edl_jax.losses.method import Student, as_method, check_loss, put_together, take_apart
from edl_jax.models import MODELS, ModelFactory
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import Sums, sums_of
from edl_jax.training.optimizers import LOSS, MODEL, Optimizer, make_optimizer, make_schedule

AXIS = "data"  # the mapped axis of the devices that share a batch
_OF_LOSS = 2**32 - 1  # folded into the key of the initial state


class TrainState(NamedTuple):
    """All that a step changes, equal on all devices."""

    params: dict[str, Any]  # "model", and "loss" of a loss that has some, float32
    statistics: Any  # of batch norm, float32
    loss_state: Any  # what a loss holds besides parameters and updates itself
    average: Any  # of the classifier's parameters and statistics; empty without `ema_decay`
    optimizer: optax.OptState
    step: jax.Array  # steps taken, int32
    loss_sum: jax.Array  # sum of the steps' mean losses since the epoch began, float32
    correct: jax.Array  # training images classified correctly since then, int32
    failed_step: jax.Array  # first step whose loss or gradient was not finite, int32; -1 if none


class Steps(NamedTuple):
    """The functions of a training, not compiled, for one device of the mapped axis "data".

    Images are its share of a batch, `[share, h, w, c]` uint8, labels `[share]` int32. The key is
    the same in every step and on every device. `validation` are all such images and labels, for a
    loss that looks at them. Sums are over the devices; a label of -1 takes no part.
    """

    init: Callable[..., TrainState]  # (key) -> state
    step: Callable[..., TrainState]  # (state, key, images, labels, *validation) -> state
    seen: Callable[..., jax.Array]  # (state, key, images, labels) -> logits of such a step
    logits: Callable[..., jax.Array]  # (state, images) -> logits as in an evaluation
    sums: Callable[..., Sums]  # (state, images, labels) -> sums
    learning_rate: Callable[[Any], Any]  # (step) -> learning rate
    validates: bool  # whether the loss looks at validation images


def make_steps(
    config: TrainConfig,
    dataset: Dataset,
    loss: Any,
    dtype: Any,
    *,
    model: ModelFactory | None = None,
    optimizer: Optimizer | None = None,
) -> Steps:
    """Build the functions of a training; the body of the classifier computes in `dtype`."""
    steps_per_epoch = len(dataset.train_labels) // config.batch_size
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    schedule = make_schedule(config.learning_rate, warmup_steps, total_steps)
    optimizer = make_optimizer(config.optimizer, schedule, optimizer)
    method = as_method(loss)
    validates = check_loss(loss, dataset.num_classes, soft=config.augmentation.mixes)
    build = make_build(config, dataset, dtype, model)
    graph = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))), nnx.Param, ...)[0]

    def init(key: jax.Array) -> TrainState:
        _, params, statistics = nnx.split(build(key), nnx.Param, ...)
        given = method.init(jax.random.fold_in(key, _OF_LOSS), dataset.num_classes)
        loss_params, loss_state = take_apart(given)
        trained = {MODEL: params, LOSS: loss_params}
        return TrainState(
            trained,
            statistics,
            loss_state,
            jax.tree.map(jnp.copy, (params, statistics)) if config.ema_decay else (),
            optimizer.init(trained),
            step=jnp.zeros((), jnp.int32),
            loss_sum=jnp.zeros((), jnp.float32),
            correct=jnp.zeros((), jnp.int32),
            failed_step=jnp.full((), -1, jnp.int32),
        )

    def prepared(
        state: TrainState, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Images and labels of a step as the model and the loss see them."""
        key, share = jax.random.fold_in(key, state.step), len(labels)
        in_batch = share * jax.lax.axis_index(AXIS) + jnp.arange(share, dtype=jnp.int32)
        return prepare(key, images, labels, in_batch, dataset, config.augmentation, dtype)

    def forward(params: Any, statistics: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """Logits of the model in training mode, and its statistics after."""
        # Copied, because a model may only update variables made at its own level of tracing.
        model: Any = nnx.merge(graph, params, statistics, copy=True)
        model.train()
        logits = model(images)
        return logits, nnx.state(model, nnx.Not(nnx.Param))

    def evaluated_logits(state: TrainState, images: jax.Array) -> jax.Array:
        model: Any = nnx.merge(graph, *evaluated(state))
        model.eval()
        return model(normalize(images, dataset.mean, dataset.std, dtype))

    def averaged(state: TrainState, new: Any) -> Any:
        """The moving average; it follows closely at first and so forgets the initial weights."""
        if not config.ema_decay:
            return ()
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))  # as in TensorFlow
        return optax.tree.update_moment(new, state.average, decay, 1)

    def step(
        state: TrainState, key: jax.Array, images: jax.Array, labels: jax.Array, *held: jax.Array
    ) -> TrainState:
        images, targets = prepared(state, key, images, labels)

        def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, statistics = forward(params[MODEL], state.statistics, images)
            losses = method.losses(put_together(params[LOSS], state.loss_state), logits, targets)
            return losses.mean(dtype=jnp.float32), (logits, statistics)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (logits, statistics)), gradient = value_and_grad(state.params)
        gradient, value = jax.lax.pmean((gradient, value), AXIS)
        statistics = jax.tree.map(_mean_of_floats, statistics)
        right = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
        right = jax.lax.psum(right, AXIS)

        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        is_finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        failed_now = ~is_finite & (state.failed_step < 0)
        going = state.step % steps_per_epoch > 0  # the epoch has begun before
        after = TrainState(
            params,
            statistics,
            state.loss_state,
            averaged(state, (params[MODEL], statistics)),
            optimizer_state,
            step=state.step + 1,
            loss_sum=jnp.where(going, state.loss_sum, 0.0) + value,
            correct=jnp.where(going, state.correct, 0) + right,
            failed_step=jnp.where(failed_now, state.step, state.failed_step),
        )

        def validation() -> tuple[jax.Array, jax.Array]:
            images, labels = held
            size = min(config.batch_size, len(labels))
            rows = (state.step % len(labels) * size + jnp.arange(size)) % len(labels)
            return evaluated_logits(after, images[rows]), labels[rows]

        progress = after.step.astype(jnp.float32) / total_steps
        student = Student(after.step, progress, logits, targets, validation)
        updated = method.update(put_together(params[LOSS], state.loss_state), student)
        loss_params, loss_state = jax.tree.map(_mean_of_floats, take_apart(updated))
        return after._replace(params={**params, LOSS: loss_params}, loss_state=loss_state)

    def seen(state: TrainState, key: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        images, _ = prepared(state, key, images, labels)
        return forward(state.params[MODEL], state.statistics, images)[0]

    def sums(state: TrainState, images: jax.Array, labels: jax.Array) -> Sums:
        return jax.lax.psum(sums_of(evaluated_logits(state, images), labels), AXIS)

    return Steps(init, step, seen, evaluated_logits, sums, schedule, validates)


def make_build(
    config: TrainConfig, dataset: Dataset, dtype: Any, model: ModelFactory | None = None
) -> Callable[[jax.Array], nnx.Module]:
    """The function that makes the classifier from a key; a model of a user's own is checked."""
    shape, num_classes = dataset.train_images.shape[1:], dataset.num_classes
    factory = model or partial(MODELS[config.model], image_size=shape[0], dtype=dtype)
    given = {"width": config.width, "head_scale": config.head_scale}
    options = {name: value for name, value in given.items() if value is not None}
    options |= {"num_classes": num_classes, "in_channels": shape[-1]}

    def build(key: jax.Array) -> nnx.Module:
        module = factory(rngs=nnx.Rngs(key), **options)
        if config.sync_batch_norm:
            module.set_attributes(nnx.BatchNorm, axis_name=AXIS, raise_if_not_found=False)
        return module

    def logits() -> Any:
        module: Any = factory(rngs=nnx.Rngs(0), **options)
        module.train()
        return module(jnp.zeros((2, *shape), dtype))

    if model is not None:
        try:
            found = nnx.eval_shape(logits)
            if found.shape != (2, num_classes):
                raise ValueError(f"it gives {found.shape} for 2 images")
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"model {model!r} cannot be used ({error}); expected a function or class that "
                f"takes {', '.join(['rngs', *options])} and gives an nnx.Module, which maps images "
                f"[batch, {', '.join(map(str, shape))}] to logits [batch, {num_classes}]."
            ) from error
    return build


def _mean_of_floats(x: jax.Array) -> jax.Array:
    return jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x


def evaluated(state: TrainState) -> tuple[Any, Any]:
    """The classifier's parameters and statistics that are evaluated: averages where there are."""
    return state.average or (state.params[MODEL], state.statistics)
