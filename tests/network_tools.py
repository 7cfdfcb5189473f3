"""What the tests of networks share: weights from NumPy, images, and compilation that is quick."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

# For programs that run once or twice: unoptimized, they compile several times faster.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def fill(model: nnx.Module) -> nnx.Module:
    """Give a model, which may be abstract, weights and statistics that are never 0 or 1.

    They depend on nothing but the names and shapes of its arrays. Returns the model.
    """
    draws = np.random.RandomState(0)  # its streams are fixed for good
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    arrays = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for path in sorted(arrays, key=lambda path: ".".join(map(str, path))):
        shape = arrays[path].shape
        if path[-1] == "kernel":
            fan_out = shape[-1] * int(np.prod(shape[:-2]))
            array = draws.normal(0, np.sqrt(2 / fan_out), shape)
        else:
            ranges = {"scale": (0.5, 1.5), "var": (0.5, 2.0)}
            array = draws.uniform(*ranges.get(path[-1], (-0.5, 0.5)), shape)
        arrays[path] = jnp.asarray(array.astype(np.float32))
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(arrays))
    nnx.update(model, state)
    return model


def images_of(size: int, side: int, channels: int = 3) -> np.ndarray:
    """Images `[size, side, side, channels]`, standard normal, float32."""
    draws = np.random.RandomState(1)
    return draws.normal(size=(size, side, side, channels)).astype(np.float32)


def logits_of(model: nnx.Module, images: np.ndarray) -> jax.Array:
    """The model's logits, compiled; its statistics stay as they are."""
    graph, state = nnx.split(model)
    return quick_jit(lambda state: nnx.merge(graph, state, copy=True)(images))(state)
