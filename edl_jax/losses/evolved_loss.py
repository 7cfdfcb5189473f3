"""The evolved loss (docs/method.md, section 6)."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from edl_jax.errors import InputError
from edl_jax.losses.inputs import check_inputs
from edl_jax.losses.log_probabilities import log_softmax
from edl_jax.losses.loss_file import Contents, read_loss_file, write_loss_file
from edl_jax.networks import Architecture, LossNetwork


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
    """An evolved loss: a drop-in for a classification loss of `optax.losses`.

    A pytree whose leaves are the network's parameters and the scale, so `jit`, `grad`, `vmap` and
    `scan` work on it and through it.

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

        Computed in float32 at least, whatever the logits' dtype; value and gradient are finite for
        any finite float32 or bfloat16 logits. For soft labels `w` it is the label-weighted mean
        over the classes, `sum_k w_k L(p, k)`.

        Args:
          logits: unnormalised log-probabilities, `[..., num_classes]`, any floating dtype.
          labels: classes, `[...]` integers in `[0, num_classes)`; or soft or one-hot labels,
            `[..., num_classes]`, of any dtype, non-negative and summing to 1.
          axis: the axis of the classes.
          where: mask of the examples, of one rank less than the logits, or mask of the classes, of
            the logits' rank; any size may be 1. An example that is False has a loss of 0; a class
            that is False takes no part, and adds nothing as a label. Logits and labels that are
            masked may be anything, NaN too.

        Returns:
          Losses of at least 0, `[...]`, in the logits' dtype. Labels that are no classes or no
          distributions are an error when their values are known. In a trace, a class out of range
          and a soft label that is not finite give NaN.

        Raises:
          InputError: if shapes, dtypes or labels do not fit, or the loss is a stack of several.
        """
        if jnp.ndim(self.scale):
            raise InputError(
                f"the loss is a stack of losses, {jnp.shape(self.scale)}; expected a single one. "
                "Call a stack by jax.vmap: jax.vmap(lambda loss: loss(logits, labels))(stack)."
            )
        x = check_inputs(logits, labels, axis, where)
        log_p, network = log_softmax(x.logits, x.where), self.network()
        return x.losses(
            lambda label: self.scale * network(log_p, label),
            lambda weights: self.scale * network.label_weighted(log_p, weights),
        )

    def network(self) -> LossNetwork:
        """The loss network behind the loss, without the scale."""
        graphdef, shapes = self.architecture.abstract()
        state = jax.tree.map(lambda x: x, shapes)  # a copy: the abstract one is kept for others
        nnx.replace_by_pure_dict(state, self.params)
        return nnx.merge(graphdef, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the loss to one safetensors file (`edl_jax.losses.loss_file`), whole or not at all.

        Raises:
          ConfigError: if `path` is no path.
          InputError: if `load` would refuse the file: the loss is not whole, not finite, or several
            that were stacked.
          OSError: if the file cannot be written.
        """
        for name, kind in (("architecture", Architecture), ("provenance", Provenance)):
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(
                    f"the loss cannot be saved: its {name} is {value!r}; expected one of the class "
                    f"{kind.__name__}."
                )
        arrays = {"params": self.params, "scale": self.scale}
        write_loss_file(path, Contents(self.architecture, arrays, vars(self.provenance)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "EvolvedLoss":
        """Read a loss from a file that `save` wrote. Runs no code from the file.

        Raises:
          ConfigError: if `path` is no path.
          LossFileError: if the file is missing, truncated, foreign, or at odds with its header, or
            its losses could overflow.
        """
        architecture, arrays, records = read_loss_file(path)
        return EvolvedLoss(**arrays, architecture=architecture, provenance=Provenance(**records))


# As an attribute of a module it is data like any array, in need of no wrapper.
nnx.register_data_type(EvolvedLoss)
