"""A population divided among devices, on one host or several.

Every device runs the whole generation on its own copy of the small state, with the same keys: it
draws the same pairs and breeds the same population. Only the costly part is divided: each device
scores its share of the population, and the fitness is all that crosses between them.
"""

from typing import Any

import jax

AXIS = "pop"


def my_share(population: Any, shards: int) -> Any:
    """This device's share of a population, under a mapped axis "pop" of that many devices."""
    if shards == 1:
        return population
    index = jax.lax.axis_index(AXIS)

    def share(x: jax.Array) -> jax.Array:
        size = x.shape[0] // shards
        return jax.lax.dynamic_slice_in_dim(x, index * size, size)

    return jax.tree.map(share, population)


def of_all(fitness: jax.Array, shards: int) -> jax.Array:
    """The fitness of the whole population, from each device's share of it."""
    return fitness if shards == 1 else jax.lax.all_gather(fitness, AXIS, tiled=True)
