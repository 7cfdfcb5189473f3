"""Begin anew where evolution stagnates, keeping the best of each attempt."""

import jax
import jax.numpy as jnp
from flax import nnx, struct

_NUM_CHAMPIONS = 8  # leaders of the last attempts, from which the winner may yet be chosen
_SMOOTHING = 0.8  # fitness is noisy: an average over some five generations must improve
_IMPROVEMENT = 0.99


@struct.dataclass
class Restarts:
    """What is remembered to tell stagnation, and of the attempts before.

    Attributes:
      smoothed: running mean of the best fitness, float32 scalar.
      reference: its last value that counted as an improvement, float32 scalar.
      stale: generations since then, int32 scalar.
      count: restarts so far, int32 scalar.
      champions: leaders of the last attempts, `[8, ...]`; before there are so many, copies.
    """

    smoothed: jax.Array
    reference: jax.Array
    stale: jax.Array
    count: jax.Array
    champions: nnx.State


def no_restarts(leader: nnx.State) -> Restarts:
    """The state before the first generation; `leader` gives the shapes."""
    return Restarts(
        smoothed=jnp.zeros((), jnp.float32),
        reference=jnp.zeros((), jnp.float32),
        stale=jnp.zeros((), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        champions=jax.tree.map(lambda x: jnp.broadcast_to(x, (_NUM_CHAMPIONS, *x.shape)), leader),
    )


def update(
    restarts: Restarts, best: jax.Array, leader: nnx.State, begun: jax.Array, patience: int
) -> tuple[Restarts, jax.Array]:
    """Take in a generation.

    Args:
      restarts: the state before.
      best: best fitness of the generation, at least 0.
      leader: the network that has it.
      begun: whether this was the first generation of an attempt.
      patience: how many generations may pass without an improvement by 1 %.

    Returns:
      The state after, and whether the next generation begins anew.
    """
    smoothed = jnp.where(begun, best, _SMOOTHING * restarts.smoothed + (1 - _SMOOTHING) * best)
    improved = begun | (smoothed < _IMPROVEMENT * restarts.reference) | (smoothed == 0)
    stale = jnp.where(improved, 0, restarts.stale + 1)
    stagnant = stale >= patience
    slot = restarts.count % _NUM_CHAMPIONS
    # Until the first restart, all places hold the present leader: no champion is ever a stranger.
    mine = (jnp.arange(_NUM_CHAMPIONS) == slot) | (restarts.count == 0)

    def keep(champions: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(mine.reshape((-1,) + (1,) * new.ndim), new, champions)

    after = Restarts(
        smoothed=smoothed,
        reference=jnp.where(improved, smoothed, restarts.reference),
        stale=stale,
        count=restarts.count + stagnant.astype(restarts.count.dtype),
        champions=jax.tree.map(keep, restarts.champions, leader),
    )
    return after, stagnant
