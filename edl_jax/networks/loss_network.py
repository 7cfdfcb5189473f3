"""What the two architectures share: features without parameters, then a small MLP.

The split matters for speed. Features depend on the pairs alone, so a whole population of networks
shares one computation of them, and only the MLP is evaluated once per network. Features come
first and examples last (`[num_features, ...]`): the matrices are a few rows high and thousands of
examples wide, which is the layout that keeps a CPU's vector units and caches busy.
"""

import abc
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "squareplus": jax.nn.squareplus,  # smooth like softplus, for one square root
}
BLOCK = 65536  # classes of examples whose hidden layers are held together


class LossNetwork(nnx.Module, abc.ABC):
    """A network from (prediction, label) to a loss of at least 0.

    Subclasses say which features they read; the MLP behind them ends in a softplus.
    """

    def __init__(
        self, num_features: int, hidden: Sequence[int], activation: str, *, rngs: nnx.Rngs
    ):
        sizes = (num_features, *hidden, 1)
        self.activation = activation
        self.layers = nnx.List(
            nnx.Linear(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in itertools.pairwise(sizes)
        )

    @abc.abstractmethod
    def features(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """What the MLP reads of predictions and labels, `[num_features, ...]`; no parameters.

        Args:
          log_probabilities: `[..., num_classes]` float, finite.
          labels: `[...]` integers in `[0, num_classes)`.
        """

    @abc.abstractmethod
    def summary(self, log_probabilities: jax.Array) -> Any:
        """What `candidate_features` needs of `[..., num_classes]` log-probabilities, a pytree."""

    @abc.abstractmethod
    def candidate_features(
        self, summary: Any, classes: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, ...]:
        """What the MLP reads if each of some classes in turn is the label; no parameters.

        Args:
          summary: of the prediction.
          classes: integers, `[1..., n]`.
          own: their log-probabilities, `[..., n]`.

        Returns:
          The features in parts, as `from_features` takes them, that broadcast to `[..., n]`.
        """

    def weights(self) -> list[tuple[jax.Array, jax.Array]]:
        """Kernel `[fan_in, fan_out]` and bias `[fan_out]` of each layer."""
        return [
            (layer.kernel[...], layer.bias[...])  # pyright: ignore[reportOptionalSubscript]
            for layer in self.layers
        ]

    def from_features(self, *parts: jax.Array) -> jax.Array:
        """The loss, `[...]`, of features `[num_features, ...]`, in one array or in several.

        Several are parts along the first axis. They broadcast, so that what many examples share
        is multiplied once.
        """
        activation = ACTIVATIONS[self.activation]
        for index, (kernel, bias) in enumerate(self.weights()):
            if index:
                parts = (activation(parts[0]),)
            rows = itertools.accumulate((len(part) for part in parts), initial=0)
            products = [
                # In full float32 on accelerators too, whose default rounds to 8 or 11 bits.
                jnp.einsum("fh,f...->h...", kernel[low:high], part, precision="highest")
                for part, (low, high) in zip(parts, itertools.pairwise(rows), strict=True)
            ]
            parts = (sum(products, bias.reshape((-1,) + (1,) * (products[0].ndim - 1))),)
        return jax.nn.softplus(parts[0][0])

    def __call__(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss, `[...]`, at least 0, of `[..., num_classes]` log-probabilities and labels."""
        return self.from_features(self.features(log_probabilities, labels))

    def label_weighted(self, log_probabilities: jax.Array, weights: jax.Array) -> jax.Array:
        """The losses of all classes weighted by soft labels, `sum_k w_k L(p, k)`, `[...]`.

        Classes are taken in blocks, so that of the MLP's hidden layers, many numbers for each class
        of each example, there are never more at a time than a block's, in the gradient too.
        Weights are `[..., num_classes]`, of the log-probabilities' dtype.
        """
        summary, lead = self.summary(log_probabilities), log_probabilities.shape[:-1]

        def of_block(block: tuple[jax.Array, ...]) -> jax.Array:
            classes, own, weights = (jnp.moveaxis(x, 0, -1) for x in block)
            losses = self.from_features(*self.candidate_features(summary, classes, own))
            return jnp.sum(weights * losses, axis=-1)

        num_classes = log_probabilities.shape[-1]
        size = max(1, BLOCK // max(1, math.prod(lead)))
        num_blocks = num_classes // size
        in_blocks = num_blocks * size if num_blocks > 1 else 0
        arrays = (  # the classes first
            jnp.arange(num_classes).reshape(-1, *(1 for _ in lead)),
            jnp.moveaxis(log_probabilities, -1, 0),
            jnp.moveaxis(weights, -1, 0),
        )
        total = jnp.zeros(lead, weights.dtype)
        if in_blocks:
            blocks = [x[:in_blocks].reshape(num_blocks, size, *x.shape[1:]) for x in arrays]
            total += jnp.sum(jax.lax.map(jax.checkpoint(of_block), tuple(blocks)), axis=0)
        if in_blocks < num_classes:
            total += of_block(tuple(x[in_blocks:] for x in arrays))
        return total


class RunnerUp(NamedTuple):
    """The runner-up of any class, the largest of the others; for all classes by a few passes.

    Each is `[..., 1]`: the first class of the largest value, that value, the largest of the other
    classes, how many classes share the largest value, and their sum.
    """

    first: jax.Array
    top: jax.Array
    second: jax.Array
    num_top: jax.Array
    tied_sum: jax.Array

    @staticmethod
    def among(values: jax.Array) -> "RunnerUp":
        """Of values `[..., num_classes]`."""
        first = jnp.argmax(values, axis=-1, keepdims=True)
        top = jnp.max(values, axis=-1, keepdims=True)
        is_first = first == jax.lax.broadcasted_iota(first.dtype, values.shape, values.ndim - 1)
        others = jnp.where(is_first, jnp.finfo(values.dtype).min, values)
        second = jnp.max(others, axis=-1, keepdims=True)
        is_top = values == top
        tied_sum = jnp.sum(jnp.where(is_top, values, 0), axis=-1, keepdims=True)
        return RunnerUp(first, top, second, jnp.sum(is_top, axis=-1, keepdims=True), tied_sum)

    def of(self, classes: jax.Array, own: jax.Array) -> jax.Array:
        """The largest value of the others, for classes that broadcast to `own`, their values."""
        # The runner-up of a class that ties at the top is as large as the class, but does not move
        # with it: its slope is the mean of the others' that tie, as of their maximum.
        others = (self.tied_sum - own) / jnp.maximum(self.num_top - 1, 1).astype(own.dtype)
        tied = jax.lax.stop_gradient(self.top) + (others - jax.lax.stop_gradient(others))
        # By number, not by value: compilers may round one of two equal expressions otherwise.
        other = jnp.where(own == self.top, tied, self.top)
        return jnp.where(classes == self.first, self.second, other)
