"""The evolved loss (docs/method.md, section 6)."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from edl_jax.errors import InputError
from edl_jax.losses.inputs import log_softmax, per_example
from edl_jax.losses.loss_file import read_loss_file, write_loss_file
from edl_jax.networks import Architecture, LossNetwork
from edl_jax.objective import gradient_norms
from edl_jax.pairs import Pairs


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a loss comes from, as JSON data; never compared, so that losses can be stacked.

    Attributes:
      config: the configuration it was evolved with.
      metrics: its metrics on held-out pairs.
      versions: the versions of the libraries that evolved it.
    """

    config: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)
    versions: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)


class EvolvedLoss(struct.PyTreeNode, eq=False):
    """An evolved loss: a drop-in for a classification loss of `optax.losses`.

    A pytree whose leaves are the network's parameters and the scale.

    References:
      Xiang and Pei, "Distribution-Free Pretraining of Classification Losses via Evolutionary
      Dynamics", 2026. https://arxiv.org/abs/2605.03722

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
    provenance: Provenance = struct.field(pytree_node=False, repr=False, default=Provenance())

    def __call__(
        self,
        logits: jax.typing.ArrayLike,
        labels: jax.typing.ArrayLike,
        *,
        axis: int = -1,
        where: jax.typing.ArrayLike | None = None,
    ) -> jax.Array:
        """The loss of each example.

        Computed in float32 at least; value and gradient are finite for any finite float32 or
        bfloat16 logits. For soft labels `w` it is `sum_k w_k L(p, k)`.

        Args:
          logits: unnormalised log-probabilities, `[..., num_classes]`, any floating dtype.
          labels: classes, `[...]` integers in `[0, num_classes)`; or soft or one-hot labels,
            `[..., num_classes]`, of any dtype, non-negative and summing to 1.
          axis: the axis of the classes.
          where: mask of the examples, of one rank less than the logits, or of the classes, of the
            logits' rank; any size may be 1. An example that is False has a loss of 0; a class that
            is False takes no part, and adds nothing as a label.

        Returns:
          Losses of at least 0, `[...]`, in the logits' dtype. In a trace, a class out of range and
          a soft label that is not finite give NaN.

        Raises:
          InputError: if shapes, dtypes or known labels do not fit, or the loss is a stack.
        """
        if jnp.ndim(self.scale):
            raise InputError(
                f"the loss is a stack of {jnp.shape(self.scale)} losses; expected a single one, or "
                "jax.vmap(lambda loss: loss(logits, labels))(stack)."
            )
        network, scale = self.network(), self.scale
        return per_example(
            logits,
            labels,
            axis,
            where,
            of_classes=lambda x, label, mask: scale * network(log_softmax(x, mask), label),
            of_weights=lambda x, weights, mask: (
                scale * network.label_weighted(log_softmax(x, mask), weights)
            ),
        )

    def network(self) -> LossNetwork:
        """The loss network behind the loss, without the scale."""
        graphdef, state = self.architecture.abstract()
        state = jax.tree.map(lambda x: x, state)  # a copy: the abstract one is kept for others
        nnx.replace_by_pure_dict(state, self.params)
        return nnx.merge(graphdef, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the loss to one safetensors file (`edl_jax.losses.loss_file`), whole or not at all.

        Raises:
          InputError: if the loss is not whole, not finite, or several that were stacked.
          OSError: if the file cannot be written.
        """
        arrays = {"params": self.params, "scale": self.scale}
        write_loss_file(path, self.architecture, arrays, vars(self.provenance))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "EvolvedLoss":
        """Read a loss from a file that `save` wrote. Runs no code from the file.

        Raises:
          LossFileError: if the file is missing, foreign, damaged or at odds with its header.
        """
        architecture, arrays, records = read_loss_file(path)
        return EvolvedLoss(**arrays, architecture=architecture, provenance=Provenance(**records))


# As an attribute of a module it is data like any array, in need of no wrapper.
nnx.register_data_type(EvolvedLoss)


def calibrated(loss: EvolvedLoss, pairs_sets: Sequence[Pairs]) -> EvolvedLoss:
    """Scale a loss so that its mean logit gradient is as long as cross-entropy's.

    Evolution leaves the scale free, and it acts as a learning rate. The mean is over all pairs, one
    set for each class count.

    Raises:
      InputError: if the loss is flat on the pairs, so that no scale could do it.
    """

    @jax.jit
    def norms(loss: EvolvedLoss, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        own, reference = gradient_norms(loss, pairs)
        return own.sum(), reference.sum()

    totals = [norms(loss, pairs) for pairs in pairs_sets]
    own, reference = (float(sum(column)) for column in zip(*totals, strict=True))
    if not own > 0:
        raise InputError(f"the loss's gradient on the pairs sums to {own}; expected a slope.")
    return loss.replace(scale=loss.scale * (reference / own))
