"""The compiled programs of a training: the batches reach the devices, and steps are taken there."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.data.dataset import Dataset
from edl_jax.data.streaming import prefetch_to_device, stream_batches
from edl_jax.errors import ConfigError
from edl_jax.losses.by_name import Loss
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
      init: `(keys) -> state`, on all devices. A key, or with `num_seeds` so many; the state's
        arrays then have an axis of seeds in front.
      advance: `(state, keys, count) -> state`: so many steps, within an epoch; donates the state.
      evaluate: `(state, split) -> metrics`, arrays of seeds, `[num_seeds or 1]`; the split is "val"
        or "test".
      steps_per_epoch: whole batches in an epoch.
      learning_rate: `(step) -> learning rate`.
      mesh: the devices.
      num_seeds: how many networks are trained side by side; None: one, without an axis of seeds.
      outputs: the logits of a state on images of a split; see `make_outputs`.
    """

    init: Callable[[jax.Array], TrainState]
    advance: Advance
    evaluate: Callable[[TrainState, str], Metrics]
    steps_per_epoch: int
    learning_rate: Callable[[int], Any]
    mesh: Mesh
    num_seeds: int | None
    outputs: Outputs


def make_train(
    config: TrainConfig,
    dataset: Dataset,
    loss: Loss,
    mesh: Mesh,
    *,
    num_seeds: int | None = None,
) -> TrainFunctions:
    """Build the functions of a training.

    Data that is in memory lives on every device as uint8; streamed data is read ahead of the
    steps. On accelerators the body computes in bfloat16 and steps are a loop on the device. On the
    CPU it computes in float32 and steps are looped from Python, because XLA's CPU backend runs a
    convolution inside a loop many times slower than outside.

    Args:
      config: how to train.
      dataset: the images.
      loss: the loss.
      mesh: the devices that share each batch; its axis is "data".
      num_seeds: train so many networks side by side, in one program, from as many keys.

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
        config, dataset, loss, schedule, steps_per_epoch=steps_per_epoch, on_cpu=on_cpu(mesh)
    )
    init, sums = steps.init, steps.sums
    if num_seeds is not None:
        init, sums = jax.vmap(init), jax.vmap(sums, in_axes=(0, None, None))
    compiled_init = jax.jit(init, compiler_options=_COMPILED_QUICKLY if on_cpu(mesh) else None)
    order_of = partial(_order, steps_per_epoch=steps_per_epoch, num_train=num_train)
    # Parts are cut first and shared among the devices then, so that a part is of the same images
    # whatever the number of devices. Row d holds the places in the batch of device d's share.
    places = np.arange(config.batch_size).reshape(config.accumulate, mesh.size, -1)
    places = places.swapaxes(0, 1).reshape(mesh.size, -1)
    if not dataset.streamed:
        advance = _in_memory(steps, dataset, mesh, places, order_of, steps_per_epoch, num_seeds)
    elif num_seeds is None:
        advance = _streamed(steps, dataset, mesh, places, order_of, steps_per_epoch)
    else:
        raise ConfigError(
            f"several seeds in one program ({num_seeds}) with streamed images; expected images in "
            "memory (stream False), or one seed at a time."
        )

    return TrainFunctions(
        lambda keys: to_every_device(jax.device_get(compiled_init(keys)), mesh),
        advance,
        make_evaluate(sums, dataset, mesh),
        steps_per_epoch,
        schedule,
        mesh,
        num_seeds,
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
    num_seeds: int | None,
) -> Advance:
    """`advance` of images that are all on every device."""

    def one(
        state: TrainState, keys: Keys, order: jax.Array, images: jax.Array, labels: jax.Array
    ) -> TrainState:
        first = (state.step % steps_per_epoch) * places.size
        mine = jnp.asarray(places)[jax.lax.axis_index(AXIS)]
        rows = jax.lax.dynamic_slice_in_dim(order, first, places.size)[mine]
        return steps.step(state, keys[1], images[rows], labels[rows], mine)

    def several(
        state: TrainState, keys: Keys, count: jax.Array, images: jax.Array, labels: jax.Array
    ) -> TrainState:
        order = order_of(state, keys[0])
        return jax.lax.fori_loop(
            0, count, lambda _, state: one(state, keys, order, images, labels), state
        )

    def of_seeds(function: Callable[..., Any], num_shared: int) -> Callable[..., Any]:
        """The function with an axis of seeds on all but its last arguments, if there are seeds."""
        if num_seeds is None:
            return function

        def mapped(*args: Any) -> Any:
            axes = (0,) * (len(args) - num_shared) + (None,) * num_shared
            return jax.vmap(function, axes)(*args)

        return mapped

    compiled_order = on_every_device(of_seeds(order_of, 0), mesh)
    compiled_one = on_every_device(of_seeds(one, 2), mesh, donate_argnums=(0,))
    compiled_several = on_every_device(of_seeds(several, 3), mesh, donate_argnums=(0,))

    def advance(state: TrainState, keys: jax.Array, count: int) -> TrainState:
        images, labels = _train_data(dataset, mesh)
        both = _split(keys)
        if not on_cpu(mesh):
            return compiled_several(state, both, jnp.int32(count), images, labels)
        order = compiled_order(state, both[0])
        for _ in range(count):
            state = compiled_one(state, both, order, images, labels)
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

    def advance(state: TrainState, keys: jax.Array, count: int) -> TrainState:
        key_order, key_step = _split(keys)
        order = np.asarray(order_of(state, key_order))
        first = int(state.step) % steps_per_epoch * places.size
        rows = order[first : first + count * places.size].reshape(count, places.size)
        rows = rows[:, places.reshape(-1)[mine]]
        batches = stream_batches(dataset.train_images, dataset.train_labels, rows)
        for images, labels in prefetch_to_device(batches, put):
            state = compiled(state, key_step, images, labels)
        return state

    return advance


def _split(keys: jax.Array) -> Keys:
    """Keys of the order and of the steps."""
    pairs = jax.vmap(jax.random.split)(jnp.atleast_1d(keys))
    return (pairs[:, 0], pairs[:, 1]) if keys.ndim else (pairs[0, 0], pairs[0, 1])


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


@functools.lru_cache(maxsize=1)  # several losses, one copy of the images
def _train_data(dataset: Dataset, mesh: Mesh) -> Batch:
    return to_every_device((dataset.train_images, dataset.train_labels), mesh)
