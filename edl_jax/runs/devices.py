"""One program on every device, of this process or of several."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from edl_jax.errors import ConfigError, EDLError

_WHOLE = PartitionSpec()


def check_backend() -> None:
    """Start JAX's backend, and say in words if it cannot be."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # of CUDA, and of any other backend
        why = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise EDLError(
            f"JAX_PLATFORMS is {jax.config.jax_platforms!r}, and JAX cannot use "  # pyright: ignore
            f"it here{f' ({why})' if why else ''}. Unset it or name another, such as "
            "JAX_PLATFORMS=cpu; GPUs need jax[cuda12] and a driver."
        ) from error


def device_mesh(axis: str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over the devices, some of every process: all by default."""
    chosen = jax.devices() if devices is None else devices
    is_list = isinstance(chosen, Sequence) and all(isinstance(x, jax.Device) for x in chosen)
    owners = {x.process_index for x in chosen} if is_list else set()
    if len(owners) != jax.process_count() or len({*chosen}) != len(chosen):
        raise ConfigError(
            f"devices is {devices!r}; expected a list of some of jax.devices(), each of them once, "
            "and some of every process."
        )
    return Mesh(np.asarray(chosen), (axis,))


def on_every_device(
    function: Callable[..., Any],
    mesh: Mesh,
    *,
    in_specs: Any = _WHOLE,
    donate_argnums: Sequence[int] = (),
) -> Any:
    """Compile a function to run whole on every device, with equal results.

    Its arguments are equal on all devices but for those that `in_specs` divides among them.
    """
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=_WHOLE, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate_argnums, out_shardings=NamedSharding(mesh, _WHOLE))


def to_every_device(tree: Any, mesh: Mesh) -> Any:
    """Copy arrays that every process holds to every device of the mesh."""
    sharding = NamedSharding(mesh, _WHOLE)

    def copy(x: ArrayLike) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(copy, tree)


def rows_divided(mesh: Mesh, size: int) -> tuple[Callable[[Any], Any], np.ndarray]:
    """How arrays of `size` rows are divided among the devices of the mesh.

    Returns a function that puts this process's rows of a pytree of arrays on its devices, as its
    part of the whole arrays; and the indices of these rows, in the order in which it takes them.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    slices = sharding.addressable_devices_indices_map((size,)).values()
    local = np.sort(np.concatenate([np.arange(size)[index] for index in slices if index]))

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x, (size, *x.shape[1:]))

    return functools.partial(jax.tree.map, put), local


def check_share(population_size: int, num_devices: int) -> None:
    """Refuse a population that so many devices cannot share equally."""
    if population_size % num_devices:
        lower = population_size // num_devices * num_devices
        sizes = " or ".join(str(size) for size in (lower + num_devices, lower) if size)
        raise ConfigError(
            f"population_size is {population_size}, which {num_devices} devices cannot share "
            f"equally; expected a multiple of {num_devices}, such as {sizes}."
        )
