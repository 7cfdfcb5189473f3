"""Log-probabilities whose values and gradients are finite for any finite logits."""

import jax
import jax.numpy as jnp

# Log-probabilities are held here, and masked classes get it: its exponential is 0, and sums,
# products and networks of it are finite in float32.
FLOOR = -1e9


@jax.custom_jvp
def hold(values: jax.Array) -> jax.Array:
    """Values of at least `FLOOR`, with the gradient of values without a floor: the way down."""
    return jnp.maximum(values, FLOOR)


@hold.defjvp
def _hold_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return hold(*primals), tangents[0]


def stable_logits(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """Logits `[..., num_classes]` with the largest at 0: differences cannot overflow."""
    if where is not None:
        logits = jnp.where(where, logits, jnp.finfo(logits.dtype).min)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    logits = hold(logits - top)
    return logits if where is None else jnp.where(where, logits, FLOOR)


def log_softmax(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """Log-probabilities of at least `FLOOR`, `[..., num_classes]`; masked classes get `FLOOR`."""
    log_p = hold(jax.nn.log_softmax(stable_logits(logits, where), axis=-1))
    return log_p if where is None else jnp.where(where, log_p, FLOOR)
