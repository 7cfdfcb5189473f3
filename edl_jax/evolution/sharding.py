"""A population divided among devices, on one host or several.

Every device runs the whole generation on its own copy of the small state, with the same keys: it
draws the same pairs and breeds the same population. Only the costly part is divided: each device
scores its share of the population, and the fitness is all that crosses between them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edl_jax.errors import ConfigError

AXIS = "pop"


def population_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "pop", over the devices: all of all processes unless given.

    Raises:
      ConfigError: if a process has none of the devices.
    """
    devices = jax.devices() if devices is None else devices
    missing = set(range(jax.process_count())) - {device.process_index for device in devices}
    if missing:
        raise ConfigError(
            f"devices is {list(devices)}, none of which belongs to process "
            f"{', '.join(map(str, sorted(missing)))}; expected some of every process."
        )
    return Mesh(np.asarray(devices), (AXIS,))


def on_every_device(
    function: Callable[..., Any], mesh: Mesh, *, donate_argnums: Sequence[int] = ()
) -> Callable[..., Any]:
    """Compile a function to run whole on every device, on equal arguments, with equal results."""
    replicated = PartitionSpec()
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
    )
    return jax.jit(
        mapped, donate_argnums=donate_argnums, out_shardings=NamedSharding(mesh, replicated)
    )


def to_every_device(tree: Any, mesh: Mesh) -> Any:
    """Copy arrays that every process holds to every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def copy(x: Any) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(copy, tree)


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
