"""What the two architectures share: features without parameters, then a small MLP.

Features depend on the pairs alone, so that a whole population of networks shares one computation of
them. They come first and examples last (`[num_features, ...]`): the matrices are a few rows high
and thousands of examples wide, the layout that keeps a CPU's vector units and caches busy.
"""

import abc
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """`log(1 + exp(x))` to float32 rounding, three times as fast as by `log1p` on a CPU."""
    power = jnp.exp(-jnp.abs(x))
    ratio = power / (2 + power)  # at most 1/3, and log(1 + power) = 2 artanh(ratio)
    square, series = ratio**2, 1 / 13
    for n in (11, 9, 7, 5, 3, 1):
        series = series * square + 1 / n
    return jnp.maximum(x, 0) + 2 * ratio * series


softplus.defjvps(lambda tangent, _, x: tangent * jax.nn.sigmoid(x))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": softplus,
    "squareplus": jax.nn.squareplus,  # smooth like softplus, for one square root
}
BLOCK = 65536  # classes of examples whose hidden layers are held together

# From classes, integers that broadcast to `[..., n]`, and their log-probabilities, `[..., n]`, to
# the features if each is the label: parts along the first axis, that broadcast to `[..., n]`.
ClassFeatures = Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]


class LossNetwork(nnx.Module, abc.ABC):
    """A network from (prediction, label) to a loss of at least 0."""

    def __init__(
        self, num_features: int, hidden: Sequence[int], activation: str, *, rngs: nnx.Rngs
    ):
        sizes = (num_features, *hidden, 1)
        self.activation = activation
        # Gaussian of variance 1 / fan_in, drawn for all layers together: quick to compile.
        ends = np.cumsum([fan_in * fan_out for fan_in, fan_out in itertools.pairwise(sizes)])
        drawn = jnp.split(jax.random.normal(rngs.params(), (ends[-1],), jnp.float32), ends[:-1])
        self.layers = nnx.List(
            nnx.Linear(
                fan_in,
                fan_out,
                kernel_init=lambda *_, own=own, sides=(fan_in, fan_out): (
                    own.reshape(sides) / sides[0] ** 0.5
                ),
                rngs=rngs,
            )
            for own, (fan_in, fan_out) in zip(drawn, itertools.pairwise(sizes), strict=True)
        )

    @abc.abstractmethod
    def class_features(self, log_p: jax.Array, only: jax.Array | None = None) -> ClassFeatures:
        """What the MLP reads of log-probabilities `[..., num_classes]`; no parameters play a part.

        `only` is given, `[..., 1]`, where it is asked for this one class of each prediction.
        """

    def features(self, log_p: jax.Array, labels: jax.Array) -> jax.Array:
        """What the MLP reads, `[num_features, ...]`, of log-probabilities and labels `[...]`."""
        labels = labels[..., None]
        own = jnp.take_along_axis(log_p, labels, axis=-1)
        return jnp.concatenate(self.class_features(log_p, labels)(labels, own))[..., 0]

    def from_features(self, *parts: jax.Array) -> jax.Array:
        """The loss, `[...]`, of features `[num_features, ...]`.

        Parts along the first axis may be given apart: they broadcast, so that what many examples
        share is multiplied once.
        """
        activation = ACTIVATIONS[self.activation]
        for index, layer in enumerate(self.layers):
            kernel, bias = layer.kernel[...], layer.bias[...]  # pyright: ignore[reportOptionalSubscript]
            if index:
                parts = (activation(parts[0]),)
            rows = itertools.accumulate((len(part) for part in parts), initial=0)
            products = [
                # In full float32 on accelerators too, whose default rounds to 8 or 11 bits.
                jnp.einsum("fh,f...->h...", kernel[low:high], part, precision="highest")
                for part, (low, high) in zip(parts, itertools.pairwise(rows), strict=True)
            ]
            parts = (sum(products, bias.reshape((-1,) + (1,) * (products[0].ndim - 1))),)
        return softplus(parts[0][0])

    def __call__(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss, `[...]`, at least 0, of `[..., num_classes]` log-probabilities and labels."""
        return self.from_features(self.features(log_probabilities, labels))

    def of_logits(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss, `[...]`, of logits `[..., num_classes]`."""
        return self(jax.nn.log_softmax(logits), labels)

    def label_weighted(self, log_probabilities: jax.Array, weights: jax.Array) -> jax.Array:
        """The losses of all classes weighted by soft labels, `sum_k w_k L(p, k)`, `[...]`.

        Classes are taken in blocks, so that of the MLP's hidden layers, many numbers for each class
        of each example, there are never more at a time than a block's, in the gradient too.
        Weights are `[..., num_classes]`, of the log-probabilities' dtype.
        """
        features, lead = self.class_features(log_probabilities), log_probabilities.shape[:-1]

        def of_block(block: tuple[jax.Array, ...]) -> jax.Array:
            classes, own, weights = (jnp.moveaxis(x, 0, -1) for x in block)
            return jnp.sum(weights * self.from_features(*features(classes, own)), axis=-1)

        num_classes = log_probabilities.shape[-1]
        size = max(1, BLOCK // max(1, math.prod(lead)))
        in_blocks = num_classes // size * size if num_classes >= 2 * size else 0
        arrays = (  # the classes first
            jnp.arange(num_classes).reshape(-1, *(1 for _ in lead)),
            jnp.moveaxis(log_probabilities, -1, 0),
            jnp.moveaxis(weights, -1, 0),
        )
        total = jnp.zeros(lead, weights.dtype)
        if in_blocks:
            blocks = [x[:in_blocks].reshape(in_blocks // size, size, *x.shape[1:]) for x in arrays]
            total += jnp.sum(jax.lax.map(jax.checkpoint(of_block), tuple(blocks)), axis=0)
        if in_blocks < num_classes:
            total += of_block(tuple(x[in_blocks:] for x in arrays))
        return total


def largest_other(values: jax.Array, classes: jax.Array) -> jax.Array:
    """The largest of values `[..., num_classes]` but that of a class `[..., 1]`, `[..., 1]`."""
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    others = jnp.where(classes == index, jnp.finfo(values.dtype).min, values)
    return jnp.max(others, axis=-1, keepdims=True)


def runner_up_of(values: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`largest_other` as a function of classes and their values, `[..., n]`; few passes for all."""
    first, top = (of(values, axis=-1, keepdims=True) for of in (jnp.argmax, jnp.max))
    second = largest_other(values, first.astype(jnp.int32))
    is_top = values == top
    tied_sum = jnp.sum(jnp.where(is_top, values, 0), axis=-1, keepdims=True)
    num_tied = jnp.maximum(jnp.sum(is_top, axis=-1, keepdims=True) - 1, 1).astype(values.dtype)

    def of_classes(classes: jax.Array, own: jax.Array) -> jax.Array:
        # The runner-up of a class that ties at the top is as large as the class, but does not move
        # with it: its slope is the mean of the others' that tie, as of their maximum.
        others = (tied_sum - own) / num_tied
        tied = jax.lax.stop_gradient(top) + (others - jax.lax.stop_gradient(others))
        # By number, not by value: compilers may round one of two equal expressions otherwise.
        return jnp.where(classes == first, second, jnp.where(own == top, tied, top))

    return of_classes
