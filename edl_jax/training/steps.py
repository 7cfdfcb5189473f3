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
from edl_jax.losses.by_name import Loss
from edl_jax.losses.method import pure_loss
from edl_jax.models.by_name import create_model
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import Sums, sums_of
from edl_jax.training.optimizers import LOSS, MODEL

AXIS = "data"  # the mapped axis of the devices that share a batch
Batch = tuple[jax.Array, jax.Array]  # images and labels
Kept = tuple[Any, Any]  # batch statistics, and what a loss keeps


class TrainState(NamedTuple):
    """All that a step changes, equal on all devices.

    Attributes:
      params: `{"model": ..., "loss": ...}`, the trained parameters of the classifier and of a loss
        that has some, float32.
      statistics: batch-norm statistics, float32.
      loss_state: what a loss holds besides parameters and updates itself, such as a counter; floats
        are averaged over the devices, all else has to come out equal on each.
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
      step: `(state, key, images, labels, index) -> state`: one step on this device's share of a
        batch, images `[share, h, w, c]` uint8, labels `[share]` int32, and their places in the
        whole batch, `[share]` int32. With several devices it runs under the mapped axis "data".
        The key is the same in every step.
      sums: `(state, images, labels) -> sums` over the images of all devices, from which the
        metrics follow; a label of -1 takes no part.
      seen: as `step`, but gives the logits that its loss would see, `[share, num_classes]`: of
        augmented images, the model in training mode. With `accumulate`, batch statistics are those
        of the whole share.
      logits: `(state, images) -> logits`, `[share, num_classes]`, as in an evaluation.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, jax.Array, jax.Array, jax.Array, jax.Array], TrainState]
    sums: Callable[[TrainState, jax.Array, jax.Array], Sums]
    seen: Callable[[TrainState, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    logits: Callable[[TrainState, jax.Array], jax.Array]


def make_steps(
    config: TrainConfig,
    dataset: Dataset,
    loss: Loss,
    schedule: optax.Schedule,
    *,
    steps_per_epoch: int,
    on_cpu: bool,
) -> Steps:
    """Build the functions of a training.

    Args:
      config: how to train.
      dataset: shapes, classes and the channels' mean and deviation.
      loss: maps logits and labels to the losses of the examples; where it is an `nnx.Module`, its
        `nnx.Param` are trained too, and its other variables are as its calls leave them.
      schedule: the learning rate.
      steps_per_epoch: after so many steps the sums over an epoch begin anew.
      on_cpu: whether loops are written out, and "auto" precision is float32.
    """
    auto = jnp.float32 if on_cpu else jnp.bfloat16
    dtype = auto if config.precision == "auto" else jnp.dtype(config.precision)
    optimizer = config.make_optimizer(schedule)
    pure = pure_loss(loss)

    def build(key: jax.Array) -> nnx.Module:
        return create_model(
            config.model,
            width=config.width,
            num_classes=dataset.num_classes,
            in_channels=dataset.train_images.shape[-1],
            image_size=dataset.train_images.shape[1],
            dtype=dtype,
            head_scale=config.head_scale,
            norm_axis=AXIS if config.sync_batch_norm else None,
            rngs=nnx.Rngs(key),
        )

    graph = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))), nnx.Param, ...)[0]

    def init(key: jax.Array) -> TrainState:
        _, params, statistics = nnx.split(build(key), nnx.Param, ...)
        trained = {MODEL: params, LOSS: pure.params}
        return TrainState(
            trained,
            statistics,
            pure.state,
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
        params: Any, kept: Kept, key: jax.Array, images: jax.Array, part: Batch
    ) -> tuple[Any, Kept, jax.Array, jax.Array]:
        """Gradient, what is kept after, mean loss and correct images of a part of the share."""
        images, targets = prepare(key, images, *part, dataset, config.augmentation, dtype)

        def objective(params: Any) -> tuple[jax.Array, tuple[Kept, jax.Array]]:
            logits, statistics = forward(params[MODEL], kept[0], images)
            losses, loss_state = pure.losses(params[LOSS], kept[1], logits, targets)
            return losses.mean(dtype=jnp.float32), ((statistics, loss_state), logits)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (kept, logits)), found = value_and_grad(params)
        is_correct = jnp.argmax(logits, axis=-1) == part[0]
        return found, kept, value, jnp.sum(is_correct, dtype=jnp.int32)

    def accumulated(
        state: TrainState, key: jax.Array, images: jax.Array, part: Batch
    ) -> tuple[Any, Kept, jax.Array, jax.Array]:
        """As `gradient`, of the whole share, one part after the other."""
        kept = state.statistics, state.loss_state
        if config.accumulate == 1:
            return gradient(state.params, kept, key, images, part)
        parts = jax.tree.map(
            lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), (images, part)
        )

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            sums, kept = carry
            found, kept, value, correct = gradient(state.params, kept, key, *part)
            return (jax.tree.map(jnp.add, sums, (found, value, correct)), kept), None

        zeros = (
            jax.tree.map(jnp.zeros_like, state.params),
            jnp.zeros((), jnp.float32),
            jnp.zeros((), jnp.int32),
        )
        # On the CPU a convolution inside a loop is many times slower than outside.
        unroll = config.accumulate if on_cpu else 1
        (sums, kept), _ = jax.lax.scan(add, (zeros, kept), parts, unroll=unroll)
        found, value = jax.tree.map(lambda x: x / config.accumulate, sums[:2])
        return found, kept, value, sums[2]

    def step(
        state: TrainState,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
    ) -> TrainState:
        key = jax.random.fold_in(key, state.step)
        found, kept, value, correct = accumulated(state, key, images, (labels, index))
        found, value = jax.lax.pmean((found, value), AXIS)
        statistics, loss_state = jax.tree.map(_mean_of_floats, kept)
        correct = jax.lax.psum(correct, AXIS)
        updates, optimizer_state = optimizer.update(found, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(found))
        failed_now = ~finite & (state.failed_step < 0)
        going = state.step % steps_per_epoch > 0  # the epoch has begun before
        return TrainState(
            params,
            statistics,
            loss_state,
            averaged(state, (params[MODEL], statistics)),
            optimizer_state,
            step=state.step + 1,
            loss_sum=jnp.where(going, state.loss_sum, 0.0) + value,
            correct=jnp.where(going, state.correct, 0) + correct,
            failed_step=jnp.where(failed_now, state.step, state.failed_step),
        )

    def averaged(state: TrainState, new: Any) -> Any:
        """The moving average; it follows closely at first, so that it forgets the initial weights.

        The decay is at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
        """
        if not config.ema_decay:
            return ()
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
        return optax.tree.update_moment(new, state.average, decay, 1)

    def seen(
        state: TrainState,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
    ) -> jax.Array:
        key = jax.random.fold_in(key, state.step)
        images, _ = prepare(key, images, labels, index, dataset, config.augmentation, dtype)
        return forward(state.params[MODEL], state.statistics, images)[0]

    def logits_of(state: TrainState, images: jax.Array) -> jax.Array:
        params, statistics = evaluated(state)
        model = nnx.merge(graph, params, statistics)
        model.eval()
        return model(normalize(images, dataset.mean, dataset.std, dtype))

    def sums(state: TrainState, images: jax.Array, labels: jax.Array) -> Sums:
        return jax.lax.psum(sums_of(logits_of(state, images), labels), AXIS)

    return Steps(init, step, sums, seen, logits_of)


def _mean_of_floats(x: jax.Array) -> jax.Array:
    return jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x


def evaluated(state: TrainState) -> tuple[Any, Any]:
    """The classifier's parameters and statistics that are evaluated: averages where there are."""
    return state.average or (state.params[MODEL], state.statistics)
