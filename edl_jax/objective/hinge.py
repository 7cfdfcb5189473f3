"""The ranking-consistency objective that evolution minimises."""

import chex
import jax
import jax.numpy as jnp

from edl_jax.errors import InputError
from edl_jax.objective.severity import Margin


def margin_violation(
    losses: jax.Array, severities: jax.Array, *, margin: Margin, num_opponents: int
) -> jax.Array:
    """How much of the margins that severity asks for a loss fails to keep.

    Each pair i meets `num_opponents` others j. With e the severities, L the losses and
    `m = margin(e_i, e_j)` for the one with `e_i > e_j`, the value is

        sum max(0, m - (L_i - L_j)) / sum m

    so 0 means that every margin is kept and 1 is what a constant loss scores. Pairs of equal
    severity ask for nothing.

    Args:
      losses: `[num_pairs]`.
      severities: `[num_pairs]`, in random order: opponents are taken by position.
      margin: one of `MARGINS`, or any function of the worse and the better severity.
      num_opponents: how many others each pair meets, between 1 and `num_pairs - 1`.

    Returns:
      The scalar violation, at least 0.

    Raises:
      InputError: if the margin gives neither one value for each comparison nor a single one.
    """
    chex.assert_equal_shape([losses, severities])
    num_pairs = losses.size
    # Slices of arrays that go once around: cheaper than rolling them for each opponent.
    around_losses = jnp.concatenate([losses, losses[:num_opponents]])
    around_severities = jnp.concatenate([severities, severities[:num_opponents]])
    violated = demanded = jnp.zeros((), losses.dtype)
    for shift in range(1, num_opponents + 1):
        other_losses = around_losses[shift : shift + num_pairs]
        other_severities = around_severities[shift : shift + num_pairs]
        sign = jnp.sign(severities - other_severities)
        least = margin(
            jnp.maximum(severities, other_severities), jnp.minimum(severities, other_severities)
        )
        if jnp.shape(least) not in ((), losses.shape):
            raise InputError(
                f"margin {getattr(margin, '__name__', margin)} gave shape {jnp.shape(least)} for "
                f"severities of shape {losses.shape}; expected one value for each comparison."
            )
        asked = jnp.where(sign == 0, 0.0, least)
        kept = sign * (losses - other_losses)
        violated += jnp.sum(jax.nn.relu(asked - kept))
        demanded += jnp.sum(asked)
    return violated / jnp.maximum(demanded, jnp.finfo(demanded.dtype).tiny)
