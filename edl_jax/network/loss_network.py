"""What the two architectures share: features without parameters, then a small MLP.

The split matters for speed. Features depend on the pairs alone, so a whole population of networks
shares one computation of them, and only the MLP is evaluated once per network. Features come
first and examples last (`[num_features, ...]`): the matrices are a few rows high and thousands of
examples wide, which is the layout that keeps a CPU's vector units and caches busy.
"""

import abc
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "squareplus": jax.nn.squareplus,  # smooth like softplus, for one square root
}


class LossNetwork(nnx.Module, abc.ABC):
    """A network from (prediction, label) to a loss of at least 0.

    Subclasses say which features they read; the MLP behind them ends in a softplus.
    """

    def __init__(
        self, num_features: int, hidden: Sequence[int], activation: str, *, rngs: nnx.Rngs
    ):
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}."
            )
        if any(width < 1 for width in hidden):
            raise ConfigError(f"hidden is {tuple(hidden)}; expected positive widths.")
        sizes = (num_features, *hidden, 1)
        self.activation = activation
        self.layers = nnx.List(
            nnx.Linear(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in itertools.pairwise(sizes)
        )

    @abc.abstractmethod
    def features(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """What the MLP reads of a prediction and its label; uses no parameters.

        Args:
          log_probabilities: `[..., num_classes]` float, finite.
          labels: `[...]` integers in `[0, num_classes)`.

        Returns:
          `[num_features, ...]`.
        """

    @abc.abstractmethod
    def features_of_every_class(self, log_probabilities: jax.Array) -> jax.Array:
        """The features with each class in turn as the label, `[num_features, ..., num_classes]`."""

    def weights(self) -> list[tuple[jax.Array, jax.Array]]:
        """Kernel `[fan_in, fan_out]` and bias `[fan_out]` of each layer."""
        return [
            (layer.kernel[...], layer.bias[...])  # pyright: ignore[reportOptionalSubscript]
            for layer in self.layers
        ]

    def from_features(self, features: jax.Array) -> jax.Array:
        """The loss, `[...]`, at least 0, of `features`, `[num_features, ...]`."""
        activation = ACTIVATIONS[self.activation]
        for index, (kernel, bias) in enumerate(self.weights()):
            if index:
                features = activation(features)
            # In full float32 on accelerators too, whose default rounds to 8 or 11 bits.
            highest = jax.lax.Precision.HIGHEST
            features = jnp.einsum("fh,f...->h...", kernel, features, precision=highest)
            features += bias.reshape((-1,) + (1,) * (features.ndim - 1))
        return jax.nn.softplus(features[0])

    def __call__(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss, `[...]`, at least 0, of `[..., num_classes]` log-probabilities and labels."""
        return self.from_features(self.features(log_probabilities, labels))
