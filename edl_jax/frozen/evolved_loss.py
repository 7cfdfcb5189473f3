"""The frozen loss (design 1.6)."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.core import Tracer

from edl_jax.errors import InputError
from edl_jax.frozen.loss_file import Contents, read_loss_file, write_loss_file
from edl_jax.network import Architecture, LossNetwork

# Log-probabilities stay above this, and masked classes get it: its exponential is 0, and the
# network's output on it is finite in float32.
_FLOOR = -1e9


@dataclasses.dataclass(frozen=True, eq=False)
class Provenance:
    """Where a loss comes from, as JSON data.

    It is carried along and never compared: two losses that differ in it alone share one compiled
    program and can be stacked.

    Attributes:
      config: the configuration it was evolved with.
      metrics: its metrics on held-out pairs.
      versions: the versions of the libraries that evolved it.
    """

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Provenance)

    def __hash__(self) -> int:
        return hash(Provenance)


class EvolvedLoss(struct.PyTreeNode, eq=False):
    """A frozen evolved loss: a drop-in for a classification loss of `optax.losses`.

    A pytree whose leaves are the network's parameters and the scale, so `jit`, `grad`, `vmap` and
    `scan` work on it and through it.

    Attributes:
      params: the loss network's parameters, a pytree of float32 arrays.
      scale: factor on the network's output, a float32 scalar, set by calibration.
      architecture: the loss network's structure.
      provenance: configuration, held-out metrics and versions.

    >>> loss = load_pretrained()
    >>> loss(jnp.asarray([[2.0, 0.0, -1.0]]), jnp.asarray([0])).shape
    (1,)
    """

    params: Any
    scale: jax.Array
    architecture: Architecture = struct.field(pytree_node=False)
    provenance: Provenance = struct.field(pytree_node=False, default=Provenance())

    def __call__(
        self,
        logits: jax.typing.ArrayLike,
        labels: jax.typing.ArrayLike,
        *,
        axis: int = -1,
        where: jax.typing.ArrayLike | None = None,
    ) -> jax.Array:
        """The loss of each example.

        Computed in float32 at least, whatever the logits' dtype; value and gradient are finite for
        any finite float32 or bfloat16 logits. For soft labels `w` it is the label-weighted mean
        over the classes, `sum_k w_k L(p, k)`.

        Args:
          logits: unnormalised log-probabilities, `[..., num_classes]`, any floating dtype.
          labels: classes, `[...]` integers in `[0, num_classes)`; or soft or one-hot labels,
            `[..., num_classes]`, non-negative and summing to 1.
          axis: the axis of the classes.
          where: mask of the classes, broadcastable to the logits; a class that is False takes no
            part, and adds nothing as a label.

        Returns:
          Losses of at least 0, `[...]`, in the logits' dtype. A label out of range is an error
          when the call is not traced, and gives NaN when it is.

        Raises:
          InputError: if shapes, dtypes or labels do not fit.
        """
        logits = jnp.asarray(logits)
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise InputError(f"logits have dtype {logits.dtype}; expected a floating dtype.")
        if not -logits.ndim <= axis < logits.ndim:
            raise InputError(f"axis is {axis}; expected an axis of logits of shape {logits.shape}.")
        labels = jnp.asarray(labels)
        is_soft = _is_soft(logits.shape, labels, axis)
        if where is not None:
            where = jnp.moveaxis(_broadcast_mask(where, logits.shape), axis, -1)
        log_p = _log_softmax(jnp.moveaxis(logits, axis, -1), where)
        if log_p.shape[-1] < 2:
            raise InputError(f"logits have shape {logits.shape}; expected at least 2 classes.")

        network = self.network()
        if is_soft:
            losses = network.from_features(network.features_of_every_class(log_p))
            weights = jnp.moveaxis(labels, axis, -1).astype(losses.dtype)
            value = jnp.sum(weights * losses, axis=-1, where=where)
        else:
            value = _losses_of_labels(network, log_p, labels, where)
        return (self.scale * value).astype(logits.dtype)

    def network(self) -> LossNetwork:
        """The loss network behind the loss, without the scale."""
        graphdef, shapes = self.architecture.abstract()
        state = jax.tree.map(lambda x: x, shapes)  # a copy: the abstract one is kept for others
        nnx.replace_by_pure_dict(state, self.params)
        return nnx.merge(graphdef, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the loss to one safetensors file, whole or not at all.

        `edl_jax.frozen.loss_file` describes the file.

        Raises:
          OSError: if the file cannot be written.
        """
        records = {
            field.name: getattr(self.provenance, field.name)
            for field in dataclasses.fields(self.provenance)
        }
        arrays = {"params": self.params, "scale": self.scale}
        write_loss_file(path, Contents(self.architecture, arrays, records))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "EvolvedLoss":
        """Read a loss from a file that `save` wrote. Runs no code from the file.

        Raises:
          LossFileError: if the file is missing, truncated, foreign, or at odds with its header.
        """
        architecture, arrays, records = read_loss_file(path)
        return EvolvedLoss(**arrays, architecture=architecture, provenance=Provenance(**records))


def _is_soft(shape: tuple[int, ...], labels: jax.Array, axis: int) -> bool:
    """Whether labels are a distribution over the classes; refuse labels that are neither kind."""
    batch_shape = tuple(size for index, size in enumerate(shape) if index != axis % len(shape))
    if labels.shape == shape:
        return True
    if labels.shape != batch_shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; for logits of shape "
            f"{shape} with classes along axis {axis}, expected integers of shape {batch_shape} or "
            f"soft labels of shape {shape}."
        )
    if not isinstance(labels, Tracer) and labels.size:
        values = np.asarray(labels)  # NumPy, so that a constant is checked inside a trace too
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= shape[axis]:
            raise InputError(
                f"labels range from {low} to {high}; expected classes in [0, {shape[axis]}), the "
                "logits' class count."
            )
    return False


def _broadcast_mask(where: jax.typing.ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    mask = jnp.asarray(where)
    try:
        return jnp.broadcast_to(mask, shape).astype(bool)
    except ValueError as error:
        raise InputError(
            f"where has shape {mask.shape}; expected one that broadcasts to the logits' {shape}."
        ) from error


def _log_softmax(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if where is not None:
        logits = jnp.where(where, logits, jnp.finfo(logits.dtype).min)
    log_p = jnp.maximum(jax.nn.log_softmax(logits, axis=-1), _FLOOR)
    return log_p if where is None else jnp.where(where, log_p, _FLOOR)


def _losses_of_labels(
    network: LossNetwork, log_p: jax.Array, labels: jax.Array, where: jax.Array | None
) -> jax.Array:
    num_classes = log_p.shape[-1]
    in_range = (labels >= 0) & (labels < num_classes)
    index = jnp.clip(labels, 0, num_classes - 1)
    losses = jnp.where(in_range, network(log_p, index), jnp.nan)
    if where is None:
        return losses
    takes_part = jnp.take_along_axis(where, index[..., None], axis=-1)[..., 0]
    return jnp.where(takes_part | ~in_range, losses, 0.0)
