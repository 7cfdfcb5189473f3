"""One training step and one evaluation, as pure functions of one device's share of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from edl_jax.data.augmentation import normalize
from edl_jax.data.dataset import Dataset
from edl_jax.data.mixing import prepare
from edl_jax.losses.method import Student, as_method, check_loss, put_together, take_apart
from edl_jax.training.building import make_build
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import Sums, sums_of
from edl_jax.training.optimizers import LOSS, MODEL, Optimizer, make_optimizer

AXIS = "data"  # the mapped axis of the devices that share a batch
Batch = tuple[jax.Array, jax.Array]  # images, or logits, and labels
_OF_LOSS = 2**32 - 1  # folded into the key of the initial state


class TrainState(NamedTuple):
    """All that a step changes, equal on all devices.

    Attributes:
      params: `{"model": ..., "loss": ...}`, the trained parameters of the classifier and of a loss
        that has some, float32.
      statistics: batch-norm statistics, float32.
      loss_state: what a loss holds besides parameters and updates itself, such as a counter.
      average: moving average of the classifier's parameters and statistics, float32; empty without
        `ema_decay`.
      optimizer: optax state.
      step: steps taken so far, int32 scalar.
      loss_sum: sum of the steps' mean losses since the epoch began, float32 scalar.
      correct: training images classified correctly since the epoch began, int32 scalar.
      failed_step: the first step whose loss or gradient was not finite, int32 scalar; -1 if none.
    """

    params: dict[str, Any]
    statistics: Any
    loss_state: Any
    average: Any
    optimizer: optax.OptState
    step: jax.Array
    loss_sum: jax.Array
    correct: jax.Array
    failed_step: jax.Array


class Steps(NamedTuple):
    """The functions of a training, for one device, not compiled.

    Attributes:
      init: `(key) -> state`.
      step: `(state, key, images, labels, index, *held) -> state`: one step on this device's share
        of a batch, images `[share, h, w, c]` uint8, labels `[share]` int32, and their places in the
        whole batch, `[share]` int32; and all validation images and labels, if `validates`. With
        several devices it runs under the mapped axis "data". The key is the same in every step.
      sums: `(state, images, labels) -> sums` over the images of all devices, from which the
        metrics follow; a label of -1 takes no part.
      seen: as `step`, but gives the logits that its loss would see, `[share, num_classes]`: of
        augmented images, the model in training mode. With `accumulate`, batch statistics are those
        of the whole share.
      logits: `(state, images) -> logits`, `[share, num_classes]`, as in an evaluation.
      validates: whether the loss looks at validation images.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[..., TrainState]
    sums: Callable[[TrainState, jax.Array, jax.Array], Sums]
    seen: Callable[[TrainState, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    logits: Callable[[TrainState, jax.Array], jax.Array]
    validates: bool


def make_steps(
    config: TrainConfig,
    dataset: Dataset,
    loss: Any,
    schedule: optax.Schedule,
    *,
    steps_per_epoch: int,
    on_cpu: bool,
    model: Callable[..., nnx.Module] | None = None,
    optimizer: Optimizer | None = None,
) -> Steps:
    """Build the functions of a training.

    Args:
      config: how to train.
      dataset: shapes, classes and the channels' mean and deviation.
      loss: a `LossMethod`, or what `as_method` takes.
      schedule: the learning rate.
      steps_per_epoch: after so many steps the sums over an epoch begin anew.
      on_cpu: whether loops are written out, and "auto" precision is float32.
      model: of `make_build`.
      optimizer: of `make_optimizer`.
    """
    auto = jnp.float32 if on_cpu else jnp.bfloat16
    dtype = auto if config.precision == "auto" else jnp.dtype(config.precision)
    optimizer = make_optimizer(config.optimizer, schedule, optimizer)
    method = as_method(loss)

    build = make_build(config, dataset, dtype, AXIS, model)

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

    def forward(params: Any, statistics: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """Logits of the model in training mode, and its statistics after."""
        # Copied, because a model may only update variables made at its own level of tracing.
        model = nnx.merge(graph, params, statistics, copy=True)
        model.train()
        logits = model(images)
        return logits, nnx.state(model, nnx.Not(nnx.Param))

    def gradient(
        state: TrainState, statistics: Any, key: jax.Array, images: jax.Array, part: Batch
    ) -> tuple[Any, Any, Batch]:
        """Of a part of the share: gradient, mean loss and correct; statistics; logits, labels."""
        images, targets = prepare(key, images, *part, dataset, config.augmentation, dtype)

        def objective(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            logits, after = forward(params[MODEL], statistics, images)
            losses = method.losses(put_together(params[LOSS], state.loss_state), logits, targets)
            return losses.mean(dtype=jnp.float32), (after, logits)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (statistics, logits)), found = value_and_grad(state.params)
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == part[0], dtype=jnp.int32)
        return (found, value, correct), statistics, (logits, targets)

    def accumulated(
        state: TrainState, key: jax.Array, images: jax.Array, part: Batch
    ) -> tuple[Any, Any, Batch]:
        """As `gradient`, of the whole share, one part after the other."""
        if config.accumulate == 1:
            return gradient(state, state.statistics, key, images, part)
        parts = jax.tree.map(
            lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), (images, part)
        )

        def add(carry: Any, part: Any) -> tuple[Any, Batch]:
            found, statistics, outputs = gradient(state, carry[1], key, *part)
            return (jax.tree.map(jnp.add, carry[0], found), statistics), outputs

        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.loss_sum, state.correct))
        # On the CPU a convolution inside a loop is many times slower than outside.
        unroll = config.accumulate if on_cpu else 1
        (sums, statistics), outputs = jax.lax.scan(
            add, (zeros, state.statistics), parts, unroll=unroll
        )
        found, value = jax.tree.map(lambda x: x / config.accumulate, sums[:2])
        outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        return (found, value, sums[2]), statistics, outputs

    def step(state: TrainState, key: jax.Array, images: jax.Array, *rest: jax.Array) -> TrainState:
        key, (labels, index, *held) = jax.random.fold_in(key, state.step), rest
        share = accumulated(state, key, images, (labels, index))
        (found, value, correct), statistics, outputs = share
        found, value = jax.lax.pmean((found, value), AXIS)
        statistics = jax.tree.map(_mean_of_floats, statistics)
        correct = jax.lax.psum(correct, AXIS)
        updates, optimizer_state = optimizer.update(found, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(found))
        failed_now = ~finite & (state.failed_step < 0)
        going = state.step % steps_per_epoch > 0  # the epoch has begun before
        after = TrainState(
            params,
            statistics,
            state.loss_state,
            averaged(state, (params[MODEL], statistics)),
            optimizer_state,
            step=state.step + 1,
            loss_sum=jnp.where(going, state.loss_sum, 0.0) + value,
            correct=jnp.where(going, state.correct, 0) + correct,
            failed_step=jnp.where(failed_now, state.step, state.failed_step),
        )

        def validation() -> Batch:
            images, labels = held
            size = min(config.batch_size, len(labels))
            rows = (state.step % len(labels) * size + jnp.arange(size)) % len(labels)
            return logits_of(after, images[rows]), labels[rows]

        progress = after.step.astype(jnp.float32) / (config.epochs * steps_per_epoch)
        student = Student(after.step, progress, *outputs, validation)
        updated = method.update(put_together(params[LOSS], state.loss_state), student)
        loss_params, loss_state = jax.tree.map(_mean_of_floats, take_apart(updated))
        return after._replace(params={**params, LOSS: loss_params}, loss_state=loss_state)

    def averaged(state: TrainState, new: Any) -> Any:
        """The moving average; it follows closely at first, so that it forgets the initial weights.

        The decay is at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
        """
        if not config.ema_decay:
            return ()
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
        return optax.tree.update_moment(new, state.average, decay, 1)

    def seen(state: TrainState, key: jax.Array, images: jax.Array, *rest: jax.Array) -> jax.Array:
        key, (labels, index) = jax.random.fold_in(key, state.step), rest
        images, _ = prepare(key, images, labels, index, dataset, config.augmentation, dtype)
        return forward(state.params[MODEL], state.statistics, images)[0]

    def logits_of(state: TrainState, images: jax.Array) -> jax.Array:
        params, statistics = evaluated(state)
        model = nnx.merge(graph, params, statistics)
        model.eval()
        return model(normalize(images, dataset.mean, dataset.std, dtype))

    def sums(state: TrainState, images: jax.Array, labels: jax.Array) -> Sums:
        return jax.lax.psum(sums_of(logits_of(state, images), labels), AXIS)

    validates = check_loss(loss, dataset.num_classes, soft=config.augmentation.mixes)
    return Steps(init, step, sums, seen, logits_of, validates)


def _mean_of_floats(x: jax.Array) -> jax.Array:
    return jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x


def evaluated(state: TrainState) -> tuple[Any, Any]:
    """The classifier's parameters and statistics that are evaluated: averages where there are."""
    return state.average or (state.params[MODEL], state.statistics)
