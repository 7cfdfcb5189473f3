"""The fitness of a population, in blocks of networks and pairs: memory does not grow with either.

At any time only `networks_at_a_time` x `pairs_at_a_time` evaluations are in flight, so beyond the
population, the pairs and one loss for each pair of a block of networks, scoring needs

    4 bytes x networks_at_a_time x pairs_at_a_time x (2 x the widest layer)

or so: 8 MiB with the default configuration, whatever the population.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.network import LossNetwork, fused_from_features
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
    fused: bool = False,
) -> Callable[[nnx.State, Batch], jax.Array]:
    """`(population, batch) -> fitness`, `[population_size]`, lower is better.

    `fused` evaluates the networks by `fused_from_features` where there is an accelerator.
    """

    def losses_of(solution: nnx.State, features: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, solution)
        if not fused:
            return in_blocks(network, features)
        return jax.lax.platform_dependent(
            features,
            cpu=partial(in_blocks, network),
            default=partial(fused_from_features, network),
        )

    def in_blocks(network: LossNetwork, features: jax.Array) -> jax.Array:
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

        # Whole blocks, filled up with copies: the same code scores every network, so the last bit
        # of its fitness does not depend on how many devices share the population.
        size = jax.tree.leaves(population)[0].shape[0]
        whole_size = -(-size // networks_at_a_time) * networks_at_a_time
        rows = jnp.minimum(jnp.arange(whole_size), size - 1)
        whole = jax.tree.map(lambda x: x[rows], population)
        return jax.lax.map(violation, whole, batch_size=networks_at_a_time)[:size]

    return score


def without_failures(population: nnx.State, fitness: jax.Array) -> tuple[nnx.State, jax.Array]:
    """The population as a strategy may see it: no fitness that is not finite, no failed network.

    A failed network gives its place to the worst of its generation that did not fail, with that
    one's fitness: whatever a strategy selects, it cannot select what failed, and one that weighs
    networks by rank still moves away from the worst.

    Returns:
      The population, and its fitness, `[population_size]`. Where all failed, both stay.
    """
    finite = jnp.isfinite(fitness)
    worst = jnp.argmax(jnp.where(finite, fitness, -jnp.inf))
    mended = jax.tree.map(
        lambda x: jnp.where(finite.reshape((-1,) + (1,) * (x.ndim - 1)), x, x[worst]), population
    )
    return mended, jnp.where(finite, fitness, fitness[worst])
