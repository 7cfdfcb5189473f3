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

from edl_jax.networks import LossNetwork, fused_from_features
from edl_jax.objective import margin_violation
from edl_jax.objective.severity import Margin


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
            return by_pairs(network, features)
        return jax.lax.platform_dependent(
            features,
            cpu=partial(by_pairs, network),
            default=partial(fused_from_features, network),
        )

    def by_pairs(network: LossNetwork, features: jax.Array) -> jax.Array:
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

        return in_blocks(violation, population, networks_at_a_time)

    return score


def in_blocks(
    function: Callable[[nnx.State], jax.Array], population: nnx.State, networks_at_a_time: int
) -> jax.Array:
    """The function of every network, so many at a time: `[population_size]` float32.

    The last bit of a fitness must not depend on how many devices share the population, so XLA must
    compile a single block as it compiles several. Hence blocks are whole, filled up with copies; a
    block more is laid out than is evaluated, or a single one would not be a slice; and the number
    of blocks is hidden, or a loop over a single one would be taken apart.
    """
    size = jax.tree.leaves(population)[0].shape[0]
    num_blocks = -(-size // networks_at_a_time)
    rows = jnp.minimum(jnp.arange((num_blocks + 1) * networks_at_a_time), size - 1)
    whole = jax.tree.map(lambda x: x[rows], population)

    def of_block(index: jax.Array, found: jax.Array) -> jax.Array:
        first = index * networks_at_a_time
        block = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, first, networks_at_a_time), whole
        )
        values = jax.vmap(function)(block)
        return jax.lax.dynamic_update_slice_in_dim(found, values, first, 0)

    is_nan = jnp.isnan(jax.tree.leaves(population)[0].reshape(-1)[0])
    hidden = jnp.maximum(num_blocks, is_nan.astype(jnp.int32))  # num_blocks, whatever the networks
    found = jax.lax.fori_loop(0, hidden, of_block, jnp.zeros(len(rows), jnp.float32))
    return found[:size]


def without_failures(population: nnx.State, fitness: jax.Array) -> tuple[nnx.State, jax.Array]:
    """The population as a strategy may see it: no fitness that is not finite, no failed network.

    A failed network gives its place to the worst of its generation that did not fail, with that
    one's fitness: whatever a strategy selects, it cannot select what failed, and one that weighs
    networks by rank still moves away from the worst.

    Returns:
      The population, and its fitness, `[population_size]`. Where all failed, both stay.
    """
    finite = jnp.isfinite(fitness)
    kept = finite | ~jnp.any(finite)
    worst = jnp.argmax(jnp.where(finite, fitness, -jnp.inf))
    mended = jax.tree.map(
        lambda x: jnp.where(kept.reshape((-1,) + (1,) * (x.ndim - 1)), x, x[worst]), population
    )
    return mended, jnp.where(kept, fitness, fitness[worst])
