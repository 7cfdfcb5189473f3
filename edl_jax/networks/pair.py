"""The presumed plain form of the paper's loss network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.errors import ConfigError, InputError
from edl_jax.networks.loss_network import LossNetwork


class PairNetwork(LossNetwork):
    """An MLP on the prediction and the one-hot label side by side, for one fixed class count.

    Args:
      num_classes: class count of the predictions, at least 2.
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`.
      rngs: NNX random number generators for the initial weights.

    Raises:
      ConfigError: for a class count below 2, an unknown activation or a hidden width below 1.
    """

    def __init__(
        self,
        num_classes: int,
        hidden: Sequence[int] = (16, 16),
        activation: str = "silu",
        *,
        rngs: nnx.Rngs,
    ):
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; expected at least 2.")
        super().__init__(2 * num_classes, hidden, activation, rngs=rngs)
        self.num_classes = num_classes

    def features(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """`concat(p, onehot(y))`, `[2 num_classes, ...]`.

        Raises:
          InputError: if the predictions have another class count than the network.
        """
        self._check(log_probabilities)
        probabilities = jnp.exp(log_probabilities)
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=probabilities.dtype)
        return jnp.moveaxis(jnp.concatenate([probabilities, one_hot], axis=-1), -1, 0)

    def summary(self, log_probabilities: jax.Array) -> jax.Array:
        """The probabilities, `[num_classes, ..., 1]`."""
        self._check(log_probabilities)
        return jnp.moveaxis(jnp.exp(log_probabilities), -1, 0)[..., None]

    def candidate_features(
        self, summary: jax.Array, classes: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The probabilities, and `onehot(k)` for every class k, `[num_classes, 1..., n]`."""
        one_hot = jax.nn.one_hot(classes, self.num_classes, dtype=own.dtype, axis=0)
        return summary, one_hot

    def _check(self, log_probabilities: jax.Array) -> None:
        if log_probabilities.shape[-1] != self.num_classes:
            raise InputError(
                f"predictions have {log_probabilities.shape[-1]} classes; this PairNetwork was "
                f"made for {self.num_classes}. A class_agnostic network serves any count."
            )
