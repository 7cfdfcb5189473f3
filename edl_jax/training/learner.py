"""What is trained, and the step that trains it: pure functions of a state."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from edl_jax.data.augmentation import normalize, prepare
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import LossMethod, Student
from edl_jax.losses.by_name import Loss
from edl_jax.losses.method import as_keys, as_method, as_words, check_loss, put_together, take_apart
from edl_jax.models import MODELS, ModelFactory
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import own_parts
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import Sums, sums_of
from edl_jax.training.optimizers import LOSS, MODEL, Optimizer, make_optimizer, make_schedule

AXIS = "data"  # the mapped axis of the devices that share a batch
_OF_LOSS = 2**32 - 1  # folded into the key of the initial state
Weights = tuple[nnx.State, nnx.State]  # a classifier's parameters and statistics
Batch = tuple[jax.Array, jax.Array]  # images `[n, h, w, c]` uint8, and labels `[n]` int32


class TrainState(NamedTuple):
    """All that a step changes, equal on all devices."""

    params: dict[str, Any]  # "model", and "loss" of a loss that has some, float32
    statistics: nnx.State  # of batch norm, float32, and all else that the classifier carries
    loss_state: Any  # what a loss holds besides parameters and updates itself
    average: Weights | tuple[()]  # of the classifier's; empty without `ema_decay`
    optimizer: optax.OptState
    step: jax.Array  # steps taken, int32
    loss_sum: jax.Array  # sum of the steps' mean losses since the epoch began, float32
    correct: jax.Array  # training images classified correctly since then, int32
    failed_step: jax.Array  # first step whose loss or gradient was not finite, int32; -1 if none


class Learner:
    """A classifier, its loss and its optimizer.

    But for `init`, its functions are for one device of the axis "data" and its share of a batch.
    The key is the same in every step and on every device.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        loss: Loss | LossMethod,
        mesh: Mesh,
        *,
        model: ModelFactory | None = None,
        optimizer: Optimizer | None = None,
    ):
        """Refuse what cannot be trained; `model` and `optimizer` replace those of `config`."""
        self.config, self.dataset, self.mesh = config, dataset, mesh
        self._parts = {"loss": loss, "model": model, "optimizer": optimizer}
        num_train, size = len(dataset.train_labels), config.batch_size
        mixes = config.augmentation.mixes
        multiple = mesh.size * (2 if mixes else 1)
        if size > num_train or size % multiple:
            raise ConfigError(
                f"TrainConfig.batch_size is {size} with {num_train} training images and "
                f"{mesh.size} devices; expected at most as many as there are images, and a "
                f"multiple of {multiple}{', as images are mixed two and two' if mixes else ''}."
            )
        self.steps_per_epoch = num_train // size
        self.total_steps = config.epochs * self.steps_per_epoch
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        schedule = make_schedule(config.learning_rate, warmup, self.total_steps)
        self.learning_rate: Any = jax.jit(schedule)  # one program for the rows too
        self.method = as_method(loss)
        self.validates = check_loss(loss, dataset.num_classes, soft=mixes)
        self.on_cpu = on_cpu(mesh)
        auto = jnp.float32 if self.on_cpu else jnp.bfloat16
        self.dtype = auto if config.precision == "auto" else jnp.dtype(config.precision)
        self.build = make_build(config, dataset, self.dtype, model)
        abstract = nnx.eval_shape(lambda: self.build(jax.random.key(0)))
        self.graph, params, _ = nnx.split(abstract, nnx.Param, ...)
        state = partial(self.method.init, jax.random.key(0), dataset.num_classes)
        trained = {MODEL: params, LOSS: jax.eval_shape(lambda: take_apart(state())[0])}
        self.optimizer = make_optimizer(config.optimizer, self.learning_rate, optimizer, trained)
        if self.validates and (dataset.streamed or not config.data.val_examples):
            raise ConfigError(
                f"the loss {type(loss).__qualname__} looks at validation images, of which there "
                f"are {config.data.val_examples}{', streamed' if dataset.streamed else ''}; "
                "expected TrainConfig.data with val_examples of at least 1, and stream False."
            )

    def identity(self) -> dict[str, Any]:
        """What is trained besides the configuration; hashes the images."""
        parts = {name: describe(part) for name, part in self._parts.items() if part is not None}
        return {"data": self.dataset.identity, **own_parts(self.config), **parts}

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        _, params, statistics = nnx.split(self.build(key), nnx.Param, ...)
        statistics = as_words(statistics)
        key_loss = jax.random.fold_in(key, _OF_LOSS)
        loss_params, loss_state = take_apart(self.method.init(key_loss, self.dataset.num_classes))
        trained = {MODEL: params, LOSS: loss_params}
        return TrainState(
            trained,
            statistics,
            loss_state,
            jax.tree.map(jnp.copy, (params, statistics)) if self.config.ema_decay else (),
            self.optimizer.init(trained),
            step=jnp.zeros((), jnp.int32),
            loss_sum=jnp.zeros((), jnp.float32),
            correct=jnp.zeros((), jnp.int32),
            failed_step=jnp.full((), -1, jnp.int32),
        )

    def step(
        self, state: TrainState, key: jax.Array, batch: Batch, held_out: Batch | None = None
    ) -> TrainState:
        """The state after a step; `held_out` is for a loss that looks at validation images."""
        images, targets = self._prepared(state, key, batch)

        def objective(params: dict[str, Any]) -> tuple[jax.Array, tuple[jax.Array, nnx.State]]:
            logits, statistics = self._forward((params[MODEL], state.statistics), images)
            loss_state = put_together(params[LOSS], state.loss_state)
            losses = self.method.losses(loss_state, logits, targets)
            return losses.mean(dtype=jnp.float32), (logits, statistics)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (logits, statistics)), gradient = value_and_grad(state.params)
        gradient, value = jax.lax.pmean((gradient, value), AXIS)
        statistics = jax.tree.map(_mean_of_floats, statistics)
        predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        right = jax.lax.psum(jnp.sum(predicted == batch[1], dtype=jnp.int32), AXIS)

        given = gradient, state.optimizer, state.params
        updates, optimizer_state = self.optimizer.update(*given, value=value)
        params: Any = optax.apply_updates(state.params, updates)
        is_finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        failed_now = ~is_finite & (state.failed_step < 0)
        going = state.step % self.steps_per_epoch > 0  # the epoch has begun before
        after = TrainState(
            params,
            statistics,
            state.loss_state,
            self._averaged(state, (params[MODEL], statistics)),
            optimizer_state,
            step=state.step + 1,
            loss_sum=jnp.where(going, state.loss_sum, 0.0) + value,
            correct=jnp.where(going, state.correct, 0) + right,
            failed_step=jnp.where(failed_now, state.step, state.failed_step),
        )

        def validation() -> Batch:
            assert held_out is not None  # refused above
            images, labels = held_out
            size = min(self.config.batch_size, len(labels))
            rows = state.step % len(labels) * size + jnp.arange(size, dtype=jnp.int32)
            rows %= len(labels)
            return self.evaluated_logits(after._replace(average=()), images[rows]), labels[rows]

        progress = after.step.astype(jnp.float32) / self.total_steps
        student = Student(after.step, progress, logits, targets, validation)
        loss_state = put_together(params[LOSS], state.loss_state)
        updated = take_apart(self.method.update(loss_state, student))
        loss_params, loss_state = jax.tree.map(_mean_of_floats, updated)
        return after._replace(params={**params, LOSS: loss_params}, loss_state=loss_state)

    def _prepared(self, state: TrainState, key: jax.Array, batch: Batch) -> Batch:
        """Images and labels of a step as the model and the loss see them."""
        key, share = jax.random.fold_in(key, state.step), len(batch[1])
        in_batch = share * jax.lax.axis_index(AXIS) + jnp.arange(share, dtype=jnp.int32)
        return prepare(key, *batch, in_batch, self.dataset, self.config.augmentation, self.dtype)

    def _forward(self, weights: Weights, images: jax.Array) -> tuple[jax.Array, nnx.State]:
        """Logits of the model in training mode, and its statistics after."""
        params, statistics = weights
        keys, others = nnx.split_state(as_keys(statistics), nnx.RngKey, ...)
        # Each device draws its own noise. Keys stay as they are, and the counts beside them grow.
        fold = jax.vmap(partial(jax.random.fold_in, data=jax.lax.axis_index(AXIS)))
        own = jax.tree.map(lambda key: fold(key.ravel()).reshape(key.shape), keys)
        # Copied, because a model may only update variables made at its own level of tracing.
        model: Any = nnx.merge(self.graph, params, own, others, copy=True)
        model.train()
        logits = model(images)
        others = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngKey)))
        return logits, as_words(nnx.merge_state(keys, others))

    def _averaged(self, state: TrainState, new: Weights) -> Weights | tuple[()]:
        """The moving average; it follows closely at first and so forgets the initial weights."""
        if not self.config.ema_decay:
            return ()
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.config.ema_decay, (1 + step) / (10 + step))  # as in TensorFlow
        mean = lambda x, y: (1 - decay) * x + decay * y if _is_floating(x) else x  # noqa: E731
        return jax.tree.map(mean, new, state.average)

    def evaluated_logits(self, state: TrainState, images: jax.Array) -> jax.Array:
        """Logits of the model in evaluation mode."""
        model: Any = nnx.merge(self.graph, *evaluated(state))
        model.eval()
        return model(normalize(images, self.dataset.mean, self.dataset.std, self.dtype))

    def sums(self, state: TrainState, batch: Batch) -> Sums:
        """What the metrics are made of, over all devices; a label of -1 takes no part."""
        images, labels = batch
        return jax.lax.psum(sums_of(self.evaluated_logits(state, images), labels), AXIS)

    def seen(self, state: TrainState, key: jax.Array, batch: Batch) -> jax.Array:
        """The logits that the loss would see in a step."""
        images, _ = self._prepared(state, key, batch)
        return self._forward((state.params[MODEL], state.statistics), images)[0]


def make_build(
    config: TrainConfig, dataset: Dataset, dtype: DTypeLike, model: ModelFactory | None = None
) -> Callable[[jax.Array], nnx.Module]:
    """The function that makes the classifier from a key; a model of a user's own is checked."""
    shape, num_classes = dataset.train_images.shape[1:], dataset.num_classes
    factory = model or partial(MODELS[config.model], image_size=shape[0], dtype=dtype)
    settings = {"width": config.width, "head_scale": config.head_scale}
    options = {name: value for name, value in settings.items() if value is not None}
    options |= {"num_classes": num_classes, "in_channels": shape[-1]}

    def build(key: jax.Array) -> nnx.Module:
        module = factory(rngs=nnx.Rngs(key), **options)
        if config.sync_batch_norm:
            module.set_attributes(nnx.BatchNorm, axis_name=AXIS, raise_if_not_found=False)
        return module

    def logits() -> jax.Array:
        module = factory(rngs=nnx.Rngs(0), **options)
        module.train()
        return module(jnp.zeros((2, *shape), dtype))  # pyright: ignore[reportCallIssue]

    if model is not None:
        try:
            of_two = nnx.eval_shape(logits)
            if of_two.shape != (2, num_classes):
                raise ValueError(f"it gives {of_two.shape} for 2 images")
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"model {model!r} cannot be used ({error}); expected a function or class that "
                f"takes {', '.join(['rngs', *options])} and gives an nnx.Module, which maps images "
                f"[batch, {', '.join(map(str, shape))}] to logits [batch, {num_classes}]."
            ) from error
    return build


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _mean_of_floats(x: jax.Array) -> jax.Array:
    return jax.lax.pmean(x, AXIS) if _is_floating(x) else x


def evaluated(state: TrainState) -> Weights:
    """The classifier's parameters and statistics that are evaluated: averages where there are."""
    return as_keys(state.average or (state.params[MODEL], state.statistics))


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"
