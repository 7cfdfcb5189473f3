"""The state of a training."""

from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from edl_jax.training.classifier import Weights
from edl_jax.training.optimizers import MODEL

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


def evaluated(state: TrainState) -> Weights:
    """The classifier's parameters and statistics that are evaluated: averages where there are."""
    return state.average or (state.params[MODEL], state.statistics)
