"""The fitness of a population, in blocks of networks and pairs: memory does not grow with either.

At any time only `networks_at_a_time` x `pairs_at_a_time` evaluations are in flight, so beyond the
population, the pairs and one loss for each pair of a block of networks, scoring needs

    4 bytes x networks_at_a_time x pairs_at_a_time x (2 x the widest layer)

or so: 8 MiB with the default configuration, whatever the population.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.ranking import margin_violation
from edl_jax.ranking.severity import Margin


class Batch(NamedTuple):
    """Pairs as the population sees them, in random order.

    Attributes:
      features: `[num_features, num_pairs]` float32.
      severities: `[num_pairs]` float32.
      regimes: `[num_pairs]` int32.
      class_counts: class count of each pair, `[num_pairs]` int32.
    """

    features: jax.Array
    severities: jax.Array
    regimes: jax.Array
    class_counts: jax.Array


def make_score(
    graphdef: nnx.GraphDef,
    *,
    margin: Margin,
    num_opponents: int,
    networks_at_a_time: int,
    pairs_at_a_time: int,
) -> Callable[[nnx.State, Batch], jax.Array]:
    """`(population, batch) -> fitness`, `[population_size]`, lower is better."""

    def losses_of(solution: nnx.State, features: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, solution)
        num_features, num_pairs = features.shape
        if num_pairs <= pairs_at_a_time:
            return network.from_features(features)
        num_blocks = -(-num_pairs // pairs_at_a_time)
        padded = jnp.pad(features, ((0, 0), (0, num_blocks * pairs_at_a_time - num_pairs)))
        blocks = padded.reshape(num_features, num_blocks, pairs_at_a_time).swapaxes(0, 1)
        return jax.lax.map(network.from_features, blocks).reshape(-1)[:num_pairs]

    def score(population: nnx.State, batch: Batch) -> jax.Array:
        def violation(solution: nnx.State) -> jax.Array:
            return margin_violation(
                losses_of(solution, batch.features),
                batch.severities,
                margin=margin,
                num_opponents=num_opponents,
            )

        return jax.lax.map(violation, population, batch_size=networks_at_a_time)

    return score


def without_failures(population: nnx.State, fitness: jax.Array) -> tuple[nnx.State, jax.Array]:
    """The population as a strategy may see it: no fitness that is not finite, no failed network.

    A failed network is replaced by the best of its generation, and its fitness by one worse than
    all finite ones: whatever a strategy selects, it cannot select what failed.

    Returns:
      The population, and its fitness, `[population_size]`. Where all failed, the fitness stays.
    """
    finite = jnp.isfinite(fitness)
    best = jnp.argmin(jnp.where(finite, fitness, jnp.inf))
    worst = jnp.max(jnp.where(finite, fitness, -jnp.inf))
    penalty = worst + (worst - fitness[best]) + jnp.finfo(fitness.dtype).eps
    mended = jax.tree.map(
        lambda x: jnp.where(finite.reshape((-1,) + (1,) * (x.ndim - 1)), x, x[best]), population
    )
    return mended, jnp.where(finite, fitness, penalty)
