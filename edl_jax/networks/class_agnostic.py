"""A loss network that serves any number of classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.networks.loss_network import LossNetwork
from edl_jax.networks.runner_up import Rivals


class ClassAgnosticNetwork(LossNetwork):
    """An MLP on symmetric summaries of a prediction and its label.

    The summaries are the true class's probability and surprisal, the strongest rival's probability,
    and the prediction's entropy and second moment. None depends on the number of classes or on
    their order: one network serves any class count of at least 2, and relabelling the classes
    cannot change the loss. Logarithms are in nats, divided by 4 to be of the probabilities' size.

    Args:
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`. One that grows without bound lets the loss keep a slope
        at surprisals far beyond the pretraining pairs.
      rngs: NNX random number generators for the initial weights.

    Raises:
      ConfigError: for an unknown activation or a hidden width below 1.
    """

    def __init__(
        self, hidden: Sequence[int] = (16, 16), activation: str = "silu", *, rngs: nnx.Rngs
    ):
        super().__init__(5, hidden, activation, rngs=rngs)

    def features(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """Summaries `[5, ...]` of `[..., num_classes]` log-probabilities and `[...]` labels."""
        labels = labels[..., None]
        own = jnp.take_along_axis(log_probabilities, labels, axis=-1)
        shape = log_probabilities.shape
        is_label = labels == jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        others = jnp.where(is_label, -jnp.inf, log_probabilities)
        rival = jnp.max(others, axis=-1, keepdims=True)
        parts = _of_label(own, rival), _of_prediction(log_probabilities)
        return jnp.concatenate(parts)[..., 0]

    def summary(self, log_probabilities: jax.Array) -> tuple[Rivals, jax.Array]:
        """The rivals, and `[2, ..., 1]` entropy and second moment."""
        return Rivals.among(log_probabilities), _of_prediction(log_probabilities)

    def candidate_features(
        self, summary: tuple[Rivals, jax.Array], classes: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Summaries `[3, ..., n]` of the classes and `[2, ..., 1]` of the prediction."""
        rivals, of_prediction = summary
        return _of_label(own, rivals.of(classes, own)), of_prediction


def _of_label(own: jax.Array, rival: jax.Array) -> jax.Array:
    """`[3, ...]` of log-probabilities `[...]` of a class and of its strongest rival."""
    return jnp.stack([jnp.exp(own), -own / 4, jnp.exp(rival)])


def _of_prediction(log_probabilities: jax.Array) -> jax.Array:
    """`[2, ..., 1]`: a quarter of the entropy, and the second moment."""
    probabilities = jnp.exp(log_probabilities)
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1, keepdims=True)
    return jnp.stack([entropy / 4, jnp.sum(probabilities**2, axis=-1, keepdims=True)])
