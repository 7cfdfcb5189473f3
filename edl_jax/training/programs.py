"""The compiled programs of a training: the batches reach the devices, and steps are taken there."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.data.arrays import stream_batches
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError
from edl_jax.runs.devices import on_every_device, rows_divided, to_every_device
from edl_jax.training.config import TrainConfig
from edl_jax.training.metrics import metrics_of
from edl_jax.training.steps import AXIS, TrainState, make_steps

# For what runs once: otherwise compiling the initial weights takes as long as compiling the step.
_COMPILED_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
_EVAL_BATCH = 1000
_WHOLE, _DIVIDED = PartitionSpec(), PartitionSpec(AXIS)


class TrainFunctions:
    """The functions of a training, compiled on first use; one set serves every seed.

    Data that is in memory lives on every device as uint8; streamed data is read ahead of the steps.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, loss: Any, mesh: Mesh, **parts: Any):
        """Refuse what cannot be trained; `parts` are `model` and `optimizer` of `make_steps`."""
        num_train, size = len(dataset.train_labels), config.batch_size
        mixes = config.augmentation.mixes
        multiple = mesh.size * (2 if mixes else 1)
        if size > num_train or size % multiple:
            raise ConfigError(
                f"TrainConfig.batch_size is {size} with {num_train} training images and "
                f"{mesh.size} devices; expected at most as many as there are images, and a "
                f"multiple of {multiple}{', as images are mixed two and two' if mixes else ''}."
            )
        self.dataset, self.mesh, self.batch_size = dataset, mesh, size
        self.steps_per_epoch = num_train // size
        auto = jnp.float32 if on_cpu(mesh) else jnp.bfloat16
        dtype = auto if config.precision == "auto" else jnp.dtype(config.precision)
        self._steps = steps = make_steps(config, dataset, loss, dtype, **parts)
        self.learning_rate = steps.learning_rate
        if steps.validates and (dataset.streamed or not config.data.val_examples):
            raise ConfigError(
                f"the loss {type(loss).__qualname__} looks at validation images, of which there "
                f"are {config.data.val_examples}{', streamed' if dataset.streamed else ''}; "
                "expected TrainConfig.data with val_examples of at least 1, and stream False."
            )
        self._init = jax.jit(
            steps.init, compiler_options=_COMPILED_QUICKLY if on_cpu(mesh) else None
        )
        compiled, batch = functools.partial(on_every_device, mesh=mesh), (_DIVIDED, _DIVIDED)
        self._order = compiled(self._order_of)
        self._one = compiled(self._step_of, donate_argnums=(0,))
        self._several = compiled(self._steps_of, donate_argnums=(1,))
        keyed = (_WHOLE, _WHOLE, *batch)
        self._streamed = compiled(steps.step, in_specs=keyed, donate_argnums=(0,))
        self._sums = compiled(steps.sums, in_specs=(_WHOLE, *batch))
        divided = functools.partial(jax.shard_map, mesh=mesh, out_specs=_DIVIDED, check_vma=False)
        self._seen = jax.jit(divided(steps.seen, in_specs=keyed))
        self._logits = jax.jit(divided(steps.logits, in_specs=(_WHOLE, _DIVIDED)))

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, on all devices."""
        return to_every_device(jax.device_get(self._init(key)), self.mesh)

    def advance(self, state: TrainState, key: jax.Array, count: int) -> TrainState:
        """Take `count` steps, within an epoch; donates the state.

        On accelerators steps are a loop on the device. On the CPU they are looped from Python,
        because XLA's CPU backend runs a convolution inside a loop many times slower than outside.
        """
        key_order, key = jax.random.split(key)
        order, dataset = self._order(state, key_order), self.dataset
        if dataset.streamed:
            put, mine = rows_divided(self.mesh, self.batch_size)
            rows = np.asarray(order)[: self.steps_per_epoch * self.batch_size]
            first = int(state.step) % self.steps_per_epoch
            rows = rows.reshape(-1, self.batch_size)[first : first + count, mine]
            batches = stream_batches(dataset.train_images, dataset.train_labels, rows)
            for batch in map(put, batches):
                state = self._streamed(state, key, *batch)
            return state
        train = _on_devices(dataset, "train", self.mesh)
        held = _on_devices(dataset, "val", self.mesh) if self._steps.validates else ()
        if not on_cpu(self.mesh):
            return self._several(jnp.int32(count), state, key, order, train, held)
        for _ in range(count):
            state = self._one(state, key, order, train, held)
        return state

    def _order_of(self, state: TrainState, key: jax.Array) -> jax.Array:
        """The order of the training images in the state's epoch."""
        key = jax.random.fold_in(key, state.step // self.steps_per_epoch)
        return jax.random.permutation(key, len(self.dataset.train_labels))

    def _step_of(
        self, state: TrainState, key: jax.Array, order: jax.Array, train: Any, held: Any
    ) -> TrainState:
        """A step of images that are all on every device."""
        share = self.batch_size // self.mesh.size
        first = state.step % self.steps_per_epoch * self.batch_size
        first += share * jax.lax.axis_index(AXIS)
        rows = jax.lax.dynamic_slice_in_dim(order, first, share)
        return self._steps.step(state, key, *(x[rows] for x in train), *held)

    def _steps_of(self, count: jax.Array, state: TrainState, *data: Any) -> TrainState:
        return jax.lax.fori_loop(0, count, lambda _, state: self._step_of(state, *data), state)

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """The metrics on the split "val" or "test"."""
        read = _read_batches if self.dataset.streamed else _held_batches
        found = [self._sums(state, *batch) for batch in read(self.dataset, split, self.mesh)]
        total = jax.tree.map(lambda *x: np.sum(np.stack(x, dtype=float), axis=0), *found)
        return metrics_of(total, len(getattr(self.dataset, f"{split}_labels")))

    def outputs(
        self, state: TrainState, key: jax.Array, split: str, rows: np.ndarray
    ) -> np.ndarray:
        """The logits `[rows, num_classes]` of images of a split, on the host of one process.

        Of "train" they are what the loss would see if the next steps took these rows, which fill
        whole batches; of "val" and "test" they are as in an evaluation.
        """
        images, labels = (getattr(self.dataset, f"{split}_{x}") for x in ("images", "labels"))
        key, found = jax.random.split(key)[1], []
        # Filled up to whole batches; what was added is cut off again.
        shape = -(-len(rows) // self.batch_size), self.batch_size
        for number, batch in enumerate(np.resize(rows, shape)):
            if split == "train":
                at = state._replace(step=state.step + number)
                found.append(self._seen(at, key, images[batch], labels[batch]))
            else:
                found.append(self._logits(state, images[batch]))
        return np.concatenate(jax.device_get(found))[: len(rows)]


def _read_batches(dataset: Dataset, split: str, mesh: Mesh) -> Iterable[Any]:
    """All images of a split; the last batch is filled up with images whose label is -1."""
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    count = len(labels)
    size = -(-min(_EVAL_BATCH, count) // mesh.size) * mesh.size
    put, mine = rows_divided(mesh, size)
    places = np.arange(-(-count // size) * size).reshape(-1, size)[:, mine]
    rows = np.minimum(places, count - 1)
    if dataset.streamed:
        batches = stream_batches(images, labels, rows)
    else:
        batches = ((images[index], labels[index]) for index in rows)
    labelled = zip(batches, places < count, strict=True)
    return map(put, ((x, np.where(is_one, y, -1)) for (x, y), is_one in labelled))


@functools.lru_cache(maxsize=4)  # as of the training images, for both splits
def _held_batches(dataset: Dataset, split: str, mesh: Mesh) -> list[Any]:
    return list(_read_batches(dataset, split, mesh))


@functools.lru_cache(maxsize=2)  # several losses, one copy of the images
def _on_devices(dataset: Dataset, split: str, mesh: Mesh) -> Any:
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    return to_every_device((images, labels), mesh)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"
