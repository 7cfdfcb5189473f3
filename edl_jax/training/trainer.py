"""The compiled programs of a training, and the run of steps that `fit` drives."""

import copy
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.data.arrays import Array, stream_batches
from edl_jax.data.datasets import Dataset
from edl_jax.errors import DivergedError
from edl_jax.runs.devices import on_every_device, rows_divided, to_every_device
from edl_jax.runs.folder import METRICS, Row
from edl_jax.training.classifier import AXIS
from edl_jax.training.learner import Learner
from edl_jax.training.metrics import metrics_of
from edl_jax.training.state import Batch, TrainState

# For what runs once: otherwise compiling the initial weights takes as long as compiling the step.
_COMPILED_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_EVAL_BATCH = 1000
_WHOLE, _DIVIDED = PartitionSpec(), PartitionSpec(AXIS)


class Trainer:
    """Trains a classifier: `fit` drives what `of_seed` gives (see `edl_jax.runs.fit.Run`).

    Programs are compiled on first use, and one set serves every seed. Data that is in memory lives
    on every device as uint8; streamed data is read ahead of the steps.
    """

    unit, files, chunk = "step", (METRICS,), 100
    seed: int
    key: jax.Array  # of all steps

    def __init__(self, learner: Learner):
        self.learner, self.config, self.dataset = learner, learner.config, learner.dataset
        self.mesh = mesh = learner.mesh
        self.name, self.batch_size = f"train {self.config.model}", self.config.batch_size
        self.period, self.total = learner.steps_per_epoch, learner.total_steps

        options = _COMPILED_QUICKLY if learner.on_cpu else None
        self._init = jax.jit(learner.init, compiler_options=options)
        compiled = functools.partial(on_every_device, mesh=mesh)
        self._order = compiled(self._order_of)
        self._one = compiled(self._step_of, donate_argnums=(0,))
        self._several = compiled(self._steps_of, donate_argnums=(1,))
        keyed = (_WHOLE, _WHOLE, _DIVIDED)
        streamed = lambda state, key, batch: learner.step(state, key, lambda step: batch)  # noqa: E731
        self._streamed = compiled(streamed, in_specs=keyed, donate_argnums=(0,))
        self._sums = compiled(learner.sums, in_specs=(_WHOLE, _DIVIDED))
        divided = functools.partial(jax.shard_map, mesh=mesh, out_specs=_DIVIDED, check_vma=False)
        self._seen = jax.jit(divided(learner.seen, in_specs=keyed))
        self._logits = jax.jit(divided(learner.evaluated_logits, in_specs=(_WHOLE, _DIVIDED)))

    def of_seed(self, seed: int) -> tuple["Trainer", jax.Array]:
        """The same programs for the steps of a seed, and the key to `init` with."""
        run = copy.copy(self)
        key_init, run.key = jax.random.split(jax.random.key(seed))
        run.seed, run._seconds, run._images = seed, 0.0, 0
        return run, key_init

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, on all devices."""
        return to_every_device(jax.device_get(self._init(key)), self.mesh)

    def advance(self, state: TrainState, n: int) -> tuple[TrainState, list[Row]]:
        """Take `n` steps; a `DivergedError` says in which of them the loss was not finite."""
        began = time.perf_counter()
        state = jax.block_until_ready(self.take_steps(state, self.key, n))
        self._seconds += time.perf_counter() - began
        self._images += n * self.batch_size
        if (step := int(state.failed_step)) >= 0:
            raise DivergedError(
                f"training diverged: the loss or its gradient is not finite at step {step} (epoch "
                f"{step // self.period + 1}, seed {self.seed}), at a learning rate of "
                f"{float(self.learner.learning_rate(step)):.3g}. Lower learning_rate, lengthen "
                "warmup_epochs or set clip_norm."
            )
        return state, []

    def take_steps(self, state: TrainState, key: jax.Array, count: int) -> TrainState:
        """Take `count` steps, within an epoch; donates the state.

        On accelerators steps are a loop on the device. On the CPU they are looped from Python,
        because XLA's CPU backend runs a convolution inside a loop many times slower than outside.
        """
        key_order, key = jax.random.split(key)
        order, dataset = self._order(state, key_order), self.dataset
        if dataset.streamed:
            first = int(state.step) % self.period
            rows = np.asarray(order)[: self.period * self.batch_size]
            rows = rows.reshape(self.period, -1)[first : first + count]
            for batch in _batches(dataset, "train", rows, self.mesh):
                state = self._streamed(state, key, batch)
            return state
        train = _on_devices(dataset, "train", self.mesh)
        held_out = _on_devices(dataset, "val", self.mesh) if self.learner.validates else None
        if not self.learner.on_cpu:
            return self._several(jnp.int32(count), state, key, order, train, held_out)
        for _ in range(count):
            state = self._one(state, key, order, train, held_out)
        return state

    def _order_of(self, state: TrainState, key: jax.Array) -> jax.Array:
        """The order of the training images in the state's epoch."""
        key = jax.random.fold_in(key, state.step // self.period)
        return jax.random.permutation(key, len(self.dataset.train_labels))

    def _step_of(
        self, state: TrainState, key: jax.Array, order: jax.Array, train: Batch, held: Batch | None
    ) -> TrainState:
        """A step of images that are all on every device."""
        share = self.batch_size // self.mesh.size
        images, labels = train

        def batch_at(step: jax.Array) -> Batch:
            first = step % self.period * self.batch_size + share * jax.lax.axis_index(AXIS)
            rows = jax.lax.dynamic_slice_in_dim(order, first, share)
            return images[rows], labels[rows]

        return self.learner.step(state, key, batch_at, held)

    def _steps_of(self, count: jax.Array, state: TrainState, *data: Any) -> TrainState:
        return jax.lax.fori_loop(0, count, lambda _, state: self._step_of(state, *data), state)

    def measure(self, state: TrainState) -> Row:
        """The row of an epoch that has just ended; see `TrainResult.history`."""
        evaluated_on = "val" if self.config.data.val_examples else "test"
        step, speed = int(state.step), self._images / self._seconds
        self._seconds, self._images = 0.0, 0
        return {
            "epoch": step // self.period,
            "train_loss": float(state.loss_sum) / self.period,
            "train_accuracy": int(state.correct) / (self.period * self.batch_size),
            **self.evaluate(state, evaluated_on),
            "evaluated_on": evaluated_on,
            "learning_rate": float(self.learner.learning_rate(step - 1)),
            "images_per_second": speed,
        }

    def summary(self, row: Row) -> str:
        """Accuracy and speed."""
        accuracy, speed = row["accuracy"], row["images_per_second"]
        return f"{row['evaluated_on']} accuracy {accuracy:.3f}, {speed:.0f} images/s"

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """The metrics on the split "val" or "test"."""
        read = _all_batches if self.dataset.streamed else _kept_batches
        sums = [self._sums(state, batch) for batch in read(self.dataset, split, self.mesh)]
        total = jax.tree.map(lambda *x: np.sum(np.stack(x, dtype=float), axis=0), *sums)
        return metrics_of(total, len(_arrays(self.dataset, split)[1]))

    def outputs(
        self, state: TrainState, key: jax.Array, split: str, rows: np.ndarray
    ) -> np.ndarray:
        """The logits `[rows, num_classes]` of images of a split, on the host of one process.

        Of "train" they are what the loss would see if the next steps took these rows, which fill
        whole batches; of "val" and "test" they are as in an evaluation.
        """
        images, labels = _arrays(self.dataset, split)
        key, logits = jax.random.split(key)[1], []
        # Filled up to whole batches; what was added is cut off again.
        shape = -(-len(rows) // self.batch_size), self.batch_size
        for number, batch in enumerate(np.resize(rows, shape)):
            if split == "train":
                at = state._replace(step=state.step + number)
                logits.append(self._seen(at, key, (images[batch], labels[batch])))
            else:
                logits.append(self._logits(state, images[batch]))
        return np.concatenate(jax.device_get(logits))[: len(rows)]


def _arrays(dataset: Dataset, split: str) -> tuple[Array, np.ndarray]:
    return getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")


@functools.lru_cache(maxsize=2)  # several losses, one copy of the images
def _on_devices(dataset: Dataset, split: str, mesh: Mesh) -> Batch:
    return to_every_device(_arrays(dataset, split), mesh)


def _batches(dataset: Dataset, split: str, rows: np.ndarray, mesh: Mesh) -> Iterator[Batch]:
    """Batches of the rows `[batches, size]`; one beyond the last is an image with the label -1."""
    images, labels = _arrays(dataset, split)
    put, local = rows_divided(mesh, rows.shape[1])
    places = rows[:, local]
    rows = np.minimum(places, len(labels) - 1)
    if dataset.streamed:
        batches = stream_batches(images, labels, rows)
    else:
        batches = ((images[index], labels[index]) for index in rows)
    for (x, y), has_label in zip(batches, places < len(labels), strict=True):
        yield put((x, np.where(has_label, y, -1)))


def _all_batches(dataset: Dataset, split: str, mesh: Mesh) -> Iterator[Batch]:
    """All images of a split; the last batch is filled up."""
    count = len(_arrays(dataset, split)[1])
    size = -(-min(_EVAL_BATCH, count) // mesh.size) * mesh.size
    rows = np.arange(-(-count // size) * size).reshape(-1, size)
    return _batches(dataset, split, rows, mesh)


@functools.lru_cache(maxsize=4)  # as of the training images, for both splits
def _kept_batches(dataset: Dataset, split: str, mesh: Mesh) -> list[Batch]:
    return list(_all_batches(dataset, split, mesh))
