"""The logits of a network while it is trained, for who wants to look at them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from edl_jax.data.dataset import Dataset
from edl_jax.runs.devices import on_every_device, rows_divided
from edl_jax.training.steps import AXIS, Steps, TrainState

Outputs = Callable[[TrainState, jax.Array, str, np.ndarray], np.ndarray]
_WHOLE, _DIVIDED = PartitionSpec(), PartitionSpec(AXIS)


def make_outputs(steps: Steps, dataset: Dataset, mesh: Mesh, *, batch_size: int) -> Outputs:
    """`(state, key, split, rows) -> logits`, `[rows, num_classes]` float32 on the host.

    Of the images at `rows` of the split "train", "val" or "test", `[n]` whole numbers, for the
    state and the key of one training (no axis of seeds), in one process. Of "train" they are what
    the loss would see if the next steps took these rows: in whole batches, whose number of images
    `n` has to be a multiple of; augmented with the keys of these steps, and with the statistics of
    the batch. The state stays as it is. Of "val" and "test" they are as in an evaluation.
    """

    def gathered(logits: jax.Array) -> jax.Array:
        return jax.lax.all_gather(logits.astype(np.float32), AXIS, tiled=True)

    seen = on_every_device(
        lambda *args: gathered(steps.seen(*args)),
        mesh,
        in_specs=(_WHOLE, _WHOLE, _DIVIDED, _DIVIDED, _DIVIDED),
    )
    evaluated = on_every_device(
        lambda *args: gathered(steps.logits(*args)), mesh, in_specs=(_WHOLE, _DIVIDED)
    )
    put, mine = rows_divided(mesh, batch_size)

    def outputs(state: TrainState, key: jax.Array, split: str, rows: np.ndarray) -> np.ndarray:
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        key_step = jax.random.split(key)[1]
        # Filled up to whole batches; what was added is cut off again.
        filled = np.resize(rows, (-(-len(rows) // batch_size), batch_size))
        found = []
        for number, batch in enumerate(filled[:, mine]):
            if split == "train":
                share = put((images[batch], labels[batch], mine))
                at = state._replace(step=state.step + number)
                found.append(seen(at, key_step, *share))
            else:
                found.append(evaluated(state, put(images[batch])))
        return np.concatenate(jax.device_get(found))[: len(rows)]

    return outputs
