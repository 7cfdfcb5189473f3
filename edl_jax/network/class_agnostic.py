"""A loss network that serves any number of classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.network.loss_network import LossNetwork


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
        is_label = labels == jnp.arange(log_probabilities.shape[-1])
        others = jnp.where(is_label, -jnp.inf, log_probabilities)
        rival = jnp.max(others, axis=-1, keepdims=True)
        return _summaries(log_probabilities, own, rival)[..., 0]

    def features_of_every_class(self, log_probabilities: jax.Array) -> jax.Array:
        """Summaries `[5, ..., num_classes]`, each class in turn being the label."""
        return _summaries(log_probabilities, log_probabilities, _strongest_rival(log_probabilities))


def _summaries(log_probabilities: jax.Array, own: jax.Array, rival: jax.Array) -> jax.Array:
    """`[5, ..., n]` summaries for `n` candidate labels with log-probabilities `own` `[..., n]`."""
    probabilities = jnp.exp(log_probabilities)
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1, keepdims=True)
    second_moment = jnp.sum(probabilities**2, axis=-1, keepdims=True)
    return jnp.stack(
        [
            jnp.exp(own),
            -own / 4,
            jnp.exp(rival),
            jnp.broadcast_to(entropy / 4, own.shape),
            jnp.broadcast_to(second_moment, own.shape),
        ]
    )


def _strongest_rival(log_probabilities: jax.Array) -> jax.Array:
    """The largest log-probability among the other classes, for each class, `[..., num_classes]`."""
    top = jnp.max(log_probabilities, axis=-1, keepdims=True)
    is_top = log_probabilities == top
    num_top = jnp.sum(is_top, axis=-1, keepdims=True)
    alone = is_top & (num_top == 1)
    second = jnp.max(jnp.where(alone, -jnp.inf, log_probabilities), axis=-1, keepdims=True)
    # The rival of a class that ties at the top is as large as the class, but does not move with it:
    # its slope is the mean of the others' that tie, as of their maximum.
    tied_sum = jnp.sum(jnp.where(is_top, log_probabilities, 0), axis=-1, keepdims=True)
    others = (tied_sum - log_probabilities) / jnp.maximum(num_top - 1, 1)
    tied = jax.lax.stop_gradient(top) + (others - jax.lax.stop_gradient(others))
    return jnp.where(alone, second, jnp.where(is_top, tied, top))
