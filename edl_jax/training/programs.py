"""The compiled programs of a training: the batches reach the devices, and steps are taken there."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.data.arrays import stream_batches
from edl_jax.data.dataset import Dataset
from edl_jax.errors import ConfigError
from edl_jax.runs.devices import on_every_device, rows_divided, to_every_device
from edl_jax.training.config import TrainConfig
from edl_jax.training.evaluation import make_evaluate
from edl_jax.training.metrics import Metrics
from edl_jax.training.optimizers import make_schedule
from edl_jax.training.outputs import Outputs, make_outputs
from edl_jax.training.steps import AXIS, Batch, Steps, TrainState, make_steps

Advance = Callable[[TrainState, jax.Array, int], TrainState]
Keys = tuple[jax.Array, jax.Array]  # of the order and of the steps
# For what runs once: otherwise compiling the initial weights takes as long as compiling the step.
_COMPILED_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
_WHOLE, _DIVIDED = PartitionSpec(), PartitionSpec(AXIS)


class TrainFunctions(NamedTuple):
    """The functions of a training, compiled on first use; one set serves every seed.

    Attributes:
      init: `(key) -> state`, on all devices.
      advance: `(state, key, count) -> state`: so many steps, within an epoch; donates the state.
      evaluate: `(state, split) -> metrics`, arrays `[1]`; the split is "val" or "test".
      steps_per_epoch: whole batches in an epoch.
      learning_rate: `(step) -> learning rate`.
      mesh: the devices.
      outputs: the logits of a state on images of a split; see `make_outputs`.
    """

    init: Callable[[jax.Array], TrainState]
    advance: Advance
    evaluate: Callable[[TrainState, str], Metrics]
    steps_per_epoch: int
    learning_rate: Callable[[int], Any]
    mesh: Mesh
    outputs: Outputs


def make_train(
    config: TrainConfig, dataset: Dataset, loss: Any, mesh: Mesh, **parts: Any
) -> TrainFunctions:
    """Build the functions of a training.

    Data that is in memory lives on every device as uint8; streamed data is read ahead of the
    steps. On accelerators the body computes in bfloat16 and steps are a loop on the device. On the
    CPU it computes in float32 and steps are looped from Python, because XLA's CPU backend runs a
    convolution inside a loop many times slower than outside.

    Args:
      config: how to train.
      dataset: the images.
      loss: a `LossMethod`, or what `as_method` takes.
      mesh: the devices that share each batch; its axis is "data".
      parts: `model` and `optimizer` of `make_steps`.

    Raises:
      ConfigError: if there are fewer training images than a batch, or the devices and parts cannot
        share a batch equally.
    """
    num_train = len(dataset.train_labels)
    steps_per_epoch = num_train // config.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"TrainConfig.batch_size is {config.batch_size} with {num_train} training images; "
            "expected at most as many as there are images."
        )
    if config.batch_size % (mesh.size * config.accumulate):
        raise ConfigError(
            f"TrainConfig.batch_size is {config.batch_size} with {mesh.size} devices and "
            f"accumulate {config.accumulate}; expected a multiple of "
            f"{mesh.size * config.accumulate}."
        )
    share = config.batch_size // (mesh.size * config.accumulate)
    if config.augmentation.mixes and share % 2:
        raise ConfigError(
            f"TrainConfig.batch_size is {config.batch_size} with {mesh.size} devices and "
            f"accumulate {config.accumulate}, {share} images at a time; mixup and cutmix mix two "
            "and two: expected an even number."
        )
    schedule = make_schedule(
        config.learning_rate,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        total_steps=config.epochs * steps_per_epoch,
    )
    steps = make_steps(
        config,
        dataset,
        loss,
        schedule,
        steps_per_epoch=steps_per_epoch,
        on_cpu=on_cpu(mesh),
        **parts,
    )
    init = jax.jit(steps.init, compiler_options=_COMPILED_QUICKLY if on_cpu(mesh) else None)
    order_of = partial(_order, steps_per_epoch=steps_per_epoch, num_train=num_train)
    # Parts are cut first and shared among the devices then, so that a part is of the same images
    # whatever the number of devices. Row d holds the places in the batch of device d's share.
    places = np.arange(config.batch_size).reshape(config.accumulate, mesh.size, -1)
    places = places.swapaxes(0, 1).reshape(mesh.size, -1)
    make_advance = _streamed if dataset.streamed else _in_memory
    return TrainFunctions(
        lambda key: to_every_device(jax.device_get(init(key)), mesh),
        make_advance(steps, dataset, mesh, places, order_of, steps_per_epoch),
        make_evaluate(steps.sums, dataset, mesh),
        steps_per_epoch,
        schedule,
        mesh,
        make_outputs(steps, dataset, mesh, batch_size=config.batch_size),
    )


def _order(state: TrainState, key: jax.Array, *, steps_per_epoch: int, num_train: int) -> jax.Array:
    """The order of the training images in the state's epoch, `[num_train]`."""
    return jax.random.permutation(jax.random.fold_in(key, state.step // steps_per_epoch), num_train)


def _in_memory(
    steps: Steps,
    dataset: Dataset,
    mesh: Mesh,
    places: np.ndarray,
    order_of: Callable[[TrainState, jax.Array], jax.Array],
    steps_per_epoch: int,
) -> Advance:
    """`advance` of images that are all on every device."""

    def one(
        state: TrainState, keys: Keys, order: jax.Array, train: Batch, held: tuple[jax.Array, ...]
    ) -> TrainState:
        images, labels = train
        first = (state.step % steps_per_epoch) * places.size
        mine = jnp.asarray(places)[jax.lax.axis_index(AXIS)]
        rows = jax.lax.dynamic_slice_in_dim(order, first, places.size)[mine]
        return steps.step(state, keys[1], images[rows], labels[rows], mine, *held)

    def several(state: TrainState, keys: Keys, count: jax.Array, *data: Any) -> TrainState:
        order = order_of(state, keys[0])
        return jax.lax.fori_loop(0, count, lambda _, state: one(state, keys, order, *data), state)

    compiled_order = on_every_device(order_of, mesh)
    compiled_one = on_every_device(one, mesh, donate_argnums=(0,))
    compiled_several = on_every_device(several, mesh, donate_argnums=(0,))

    def advance(state: TrainState, key: jax.Array, count: int) -> TrainState:
        train = _on_devices(dataset, "train", mesh)
        held = _on_devices(dataset, "val", mesh) if steps.validates else ()
        both = _split(key)
        if not on_cpu(mesh):
            return compiled_several(state, both, jnp.int32(count), train, held)
        order = compiled_order(state, both[0])
        for _ in range(count):
            state = compiled_one(state, both, order, train, held)
        return state

    return advance


def _streamed(
    steps: Steps,
    dataset: Dataset,
    mesh: Mesh,
    places: np.ndarray,
    order_of: Callable[[TrainState, jax.Array], jax.Array],
    steps_per_epoch: int,
) -> Advance:
    """`advance` of images that are read ahead of the steps, by each process for its devices."""
    order_of = on_every_device(order_of, mesh)
    put, mine = rows_divided(mesh, places.size)

    def fed(state: TrainState, key: jax.Array, images: jax.Array, labels: jax.Array) -> TrainState:
        index = jnp.asarray(places)[jax.lax.axis_index(AXIS)]
        return steps.step(state, key, images, labels, index)

    compiled = on_every_device(
        fed, mesh, in_specs=(_WHOLE, _WHOLE, _DIVIDED, _DIVIDED), donate_argnums=(0,)
    )

    def advance(state: TrainState, key: jax.Array, count: int) -> TrainState:
        key_order, key_step = _split(key)
        order = np.asarray(order_of(state, key_order))
        first = int(state.step) % steps_per_epoch * places.size
        rows = order[first : first + count * places.size].reshape(count, places.size)
        rows = rows[:, places.reshape(-1)[mine]]
        batches = stream_batches(dataset.train_images, dataset.train_labels, rows)
        for images, labels in map(put, batches):
            state = compiled(state, key_step, images, labels)
        return state

    return advance


def _split(key: jax.Array) -> Keys:
    """Keys of the order and of the steps."""
    order, steps = jax.random.split(key)
    return order, steps


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


@functools.lru_cache(maxsize=2)  # several losses, one copy of the images
def _on_devices(dataset: Dataset, split: str, mesh: Mesh) -> Batch:
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    return to_every_device((images, labels), mesh)
