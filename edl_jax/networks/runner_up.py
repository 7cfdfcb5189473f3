"""The strongest rival of each class, for all classes at the price of a few passes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rivals(NamedTuple):
    """What tells the strongest rival of any class of `[..., num_classes]`; each `[..., 1]`.

    Attributes:
      first: the first class of the largest value.
      top: the largest value.
      second: the largest value of the classes other than `first`.
      num_top: the number of classes of the largest value.
      tied_sum: their sum.
    """

    first: jax.Array
    top: jax.Array
    second: jax.Array
    num_top: jax.Array
    tied_sum: jax.Array

    @staticmethod
    def among(values: jax.Array) -> "Rivals":
        """Of values `[..., num_classes]`."""
        first = jnp.argmax(values, axis=-1, keepdims=True)
        top = jnp.max(values, axis=-1, keepdims=True)
        is_first = first == jax.lax.broadcasted_iota(first.dtype, values.shape, values.ndim - 1)
        second = jnp.max(jnp.where(is_first, -jnp.inf, values), axis=-1, keepdims=True)
        is_top = values == top
        tied_sum = jnp.sum(jnp.where(is_top, values, 0), axis=-1, keepdims=True)
        return Rivals(first, top, second, jnp.sum(is_top, axis=-1, keepdims=True), tied_sum)

    def of(self, classes: jax.Array, own: jax.Array) -> jax.Array:
        """The largest value `[..., n]` of the classes other than each of `classes`.

        Args:
          classes: integers that broadcast to `[..., n]`.
          own: their values, `[..., n]`.
        """
        # The rival of a class that ties at the top is as large as the class, but does not move with
        # it: its slope is the mean of the others' that tie, as of their maximum.
        others = (self.tied_sum - own) / jnp.maximum(self.num_top - 1, 1).astype(own.dtype)
        tied = jax.lax.stop_gradient(self.top) + (others - jax.lax.stop_gradient(others))
        # By number, not by value: compilers may round one of two equal expressions otherwise.
        rival = jnp.where(own == self.top, tied, self.top)
        return jnp.where(classes == self.first, self.second, rival)
