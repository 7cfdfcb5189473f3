"""The step that trains a classifier with a loss: pure functions of a state."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from edl_jax.data.augmentation import prepare
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import LossMethod, Student
from edl_jax.losses.by_name import Loss, resolve_loss
from edl_jax.losses.method import Losses, as_method, check_loss, put_together, take_apart
from edl_jax.losses.searched import SearchedLoss
from edl_jax.models import ModelFactory
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import own_parts
from edl_jax.training.classifier import AXIS, Classifier, Weights, on_cpu
from edl_jax.training.config import TrainConfig, check_validation
from edl_jax.training.metrics import Sums, sums_of
from edl_jax.training.optimizers import LOSS, MODEL, Optimizer, make_optimizer, make_schedule
from edl_jax.training.state import Batch, TrainState, evaluated

_OF_LOSS = 2**32 - 1  # folded into the key of the initial state


class Learner:
    """A classifier, its loss and its optimizer.

    But for `init`, its functions are for one device of the axis "data" and its share of a batch.
    The key is the same in every step and on every device.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        loss: Loss | LossMethod | SearchedLoss,
        mesh: Mesh,
        *,
        model: ModelFactory | None = None,
        optimizer: Optimizer | None = None,
        total_steps: int | None = None,
        in_loops: bool = False,
    ):
        """Refuse what cannot be trained; the optional arguments replace what `config` says.

        `in_loops` says that `step` will run in a loop, or vectorized over losses.
        """
        self.config, self.dataset, self.mesh = config, dataset, mesh
        self.parts = {"loss": loss, "model": model, "optimizer": optimizer}
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
        self.total_steps = total_steps or config.epochs * self.steps_per_epoch
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        schedule = make_schedule(config.learning_rate, warmup, self.total_steps)
        self.learning_rate: Any = jax.jit(schedule)  # one program for the rows too
        # A loss that is still to be found has all checked but itself.
        self.is_searched = isinstance(loss, SearchedLoss)
        checked = resolve_loss("cross_entropy") if self.is_searched else loss
        self.method = as_method(checked)
        asked = check_loss(checked, dataset.num_classes, soft=mixes)
        self.validates = asked
        if asked or (isinstance(loss, SearchedLoss) and loss.validates):
            check_validation(config, dataset, f"the loss {type(loss).__qualname__}")
        self.on_cpu = on_cpu(mesh)
        auto = jnp.float32 if self.on_cpu else jnp.bfloat16
        self.dtype = auto if config.precision == "auto" else jnp.dtype(config.precision)
        self.classifier = Classifier(config, dataset, self.dtype, model)
        self.in_loops = self.classifier.in_loops(mesh)
        if in_loops:
            self.classifier = self.in_loops
        state = partial(self.method.init, jax.random.key(0), dataset.num_classes)
        loss_params = jax.eval_shape(lambda: take_apart(state())[0])
        trained = {MODEL: self.classifier.params, LOSS: loss_params}
        self.optimizer = make_optimizer(config.optimizer, self.learning_rate, optimizer, trained)

    def identity(self) -> dict[str, Any]:
        """What is trained besides the configuration; hashes the images."""
        parts = {name: describe(part) for name, part in self.parts.items() if part is not None}
        return {"data": self.dataset.identity, **own_parts(self.config), **parts}

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        params, statistics = self.classifier.init(key)
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
        self,
        state: TrainState,
        key: jax.Array,
        batch_at: Callable[[jax.Array], Batch],
        held_out: Batch | None = None,
    ) -> TrainState:
        """The state after a step on `batch_at(state.step)`.

        A loss that looks ahead asks for the batches of later steps too, and for `held_out`; one
        that looks at validation images asks for `held_out` alone.
        """
        method = self.method

        def losses(params: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
            return method.losses(put_together(params, state.loss_state), logits, targets)

        batch = batch_at(state.step)
        after, logits, targets = self._descended(state, key, batch, losses, self.classifier)

        def validation(at: TrainState = after) -> Batch:
            assert held_out is not None  # refused above
            images, labels = held_out
            size = min(self.config.batch_size, len(labels))
            rows = state.step % len(labels) * size + jnp.arange(size, dtype=jnp.int32)
            rows %= len(labels)
            weights = at.params[MODEL], at.statistics
            # A loss may look every so many steps, in a conditional.
            return self.in_loops.evaluated(weights, images[rows]), labels[rows]

        def lookahead(losses: Losses, steps: int) -> Batch:
            # What `losses` reads is equal on all devices. So its mean over them is the same, and
            # has the mean of the devices' derivatives.
            losses, read = jax.closure_convert(losses, logits, targets)
            read = jax.lax.pmean(read, AXIS)

            def further(at: TrainState, _: None) -> tuple[TrainState, None]:
                of_batch = lambda params, *batch: losses(*batch, *read)  # noqa: E731
                batch = batch_at(at.step)
                return self._descended(at, key, batch, of_batch, self.in_loops)[0], None

            # Activations are computed again on the way back: a step keeps its state alone.
            at, _ = jax.lax.scan(jax.checkpoint(further), after, length=steps)
            return validation(at)

        progress = after.step.astype(jnp.float32) / self.total_steps
        student = Student(after.step, progress, logits, targets, validation, lookahead)
        loss_state = put_together(after.params[LOSS], state.loss_state)
        updated = take_apart(method.update(loss_state, student))
        loss_params, loss_state = jax.tree.map(_mean_of_floats, updated)
        return after._replace(params={**after.params, LOSS: loss_params}, loss_state=loss_state)

    def _descended(
        self,
        state: TrainState,
        key: jax.Array,
        batch: Batch,
        losses: Callable[..., jax.Array],
        classifier: Classifier,
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        """The state after an optimizer's step, and the logits and targets that its loss was of.

        `losses` maps the loss's parameters, logits and targets to `[batch]`; differentiable.
        """
        images, targets = self._prepared(state, key, batch)

        def objective(params: dict[str, Any]) -> tuple[jax.Array, tuple[jax.Array, nnx.State]]:
            logits, statistics = classifier.trained((params[MODEL], state.statistics), images)
            values = losses(params[LOSS], logits, targets)
            return values.mean(dtype=jnp.float32), (logits, statistics)

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
        return after, logits, targets

    def _prepared(self, state: TrainState, key: jax.Array, batch: Batch) -> Batch:
        """Images and labels of a step as the model and the loss see them."""
        key, share = jax.random.fold_in(key, state.step), len(batch[1])
        in_batch = share * jax.lax.axis_index(AXIS) + jnp.arange(share, dtype=jnp.int32)
        return prepare(key, *batch, in_batch, self.dataset, self.config.augmentation, self.dtype)

    def _averaged(self, state: TrainState, new: Weights) -> Weights | tuple[()]:
        """The moving average; it follows closely at first and so forgets the initial weights."""
        if not self.config.ema_decay:
            return ()
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.config.ema_decay, (1 + step) / (10 + step))  # as in TensorFlow
        mean = lambda x, y: (1 - decay) * x + decay * y  # noqa: E731
        return jax.tree.map(
            lambda x, y: mean(x, y).astype(x.dtype) if _is_floating(x) else x, new, state.average
        )

    def evaluated_logits(self, state: TrainState, images: jax.Array) -> jax.Array:
        """Logits in evaluation mode, of the averaged weights where there are some."""
        return self.classifier.evaluated(evaluated(state), images)

    def sums(self, state: TrainState, batch: Batch) -> Sums:
        """What the metrics are made of, over all devices; a label of -1 takes no part."""
        images, labels = batch
        return jax.lax.psum(sums_of(self.evaluated_logits(state, images), labels), AXIS)

    def seen(self, state: TrainState, key: jax.Array, batch: Batch) -> jax.Array:
        """The logits that the loss would see in a step."""
        images, _ = self._prepared(state, key, batch)
        return self.classifier.trained((state.params[MODEL], state.statistics), images)[0]


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _mean_of_floats(x: jax.Array) -> jax.Array:
    return jax.lax.pmean(x, AXIS) if _is_floating(x) else x
