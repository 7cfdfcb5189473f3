"""Convolutions that are quick on a CPU; on accelerators everything is XLA's own.

XLA's CPU backend runs a convolution inside a loop, a conditional or a `vmap` over kernels three to
fifty times as slowly as outside. `convolve` has products of matrices for its weight gradient, which
is the slowest part; `convolve_in_loops` is such a product as a whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS, _SMALL_SIDE = 8, 8  # below these shifts side by side cost more than they gain


def convolve(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **rest: Any
) -> jax.Array:
    """As `jax.lax.conv_general_dilated`, for `nnx.Conv`; differentiable in reverse mode only.

    Images are `[batch, h, w, channels]`, the kernel is square with an odd side `k`, the strides are
    equal, and padding is `k // 2` on every side, without dilation and groups.
    """
    del padding, rest
    return _convolve(images, kernel, strides[0])


def convolve_in_loops(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **rest: Any
) -> jax.Array:
    """As `convolve`, as one product with patches: as quick in a loop or a `vmap` as outside.

    Outside it takes one and a half times as long as `convolve`. Differentiable any number of times.
    """
    del padding, rest
    size, stride = kernel.shape[0], strides[0]
    x = jnp.pad(images, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows, columns = (stride * ((side - 1) // stride) + 1 for side in images.shape[1:3])
    taps = [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(size)
        for j in range(size)
    ]
    # The barrier keeps XLA from computing patches and product element by element.
    patches = lax.optimization_barrier(jnp.concatenate(taps, axis=-1))
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def for_loops(module: nnx.Module) -> None:
    """Make the convolutions of a module quick in loops."""
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Conv) and part.conv_general_dilated is convolve:
            part.conv_general_dilated = convolve_in_loops


def _plain(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    side = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), ((side, side), (side, side)), dimension_numbers=_NHWC
    )


def _backward(stride: int, saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    is_wide = images.shape[-1] >= _FEW_CHANNELS and images.shape[2] >= _SMALL_SIDE
    by_shifts, size = stride == 1 and is_wide, kernel.shape[0]

    def on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
        found = _by_shifts(x, g, size) if by_shifts else _by_taps(x, g, size, stride)
        return found.astype(kernel.dtype)

    def by_xla(images: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: _plain(images, w, stride), kernel)[1](gradient)[0]

    (of_images,) = jax.vjp(lambda x: _plain(x, kernel, stride), images)[1](gradient)
    return of_images, lax.platform_dependent(images, gradient, cpu=on_cpu, default=by_xla)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2,))
_convolve.defvjp(lambda x, w, stride: (_plain(x, w, stride), (x, w)), _backward)


def _by_shifts(images: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """The weight gradient as one product of shifted images and oppositely shifted gradients.

    `dW[i, j] = sum x[h + i, w + j] g[h, w] = sum x[h + i, v] g[h, v - j]`: with k row shifts of the
    images side by side as channels, and k column shifts of the gradient, all k^2 taps are one
    product of `[k in_channels, n]` and `[n, k out_channels]`: three copies instead of the nine of
    patches for k = 3, and a product that is not narrow.
    """
    side, (height, width) = size // 2, images.shape[1:3]
    # The barriers keep XLA from computing padding, shifts and product element by element.
    x = lax.optimization_barrier(jnp.pad(images, ((0, 0), (side, side), (side, side), (0, 0))))
    x = [x[:, i : i + height] for i in range(size)]
    x = lax.optimization_barrier(jnp.concatenate(x, axis=-1))
    margin, span = 2 * side, width + 2 * side
    padding = ((0, 0), (0, 0), (margin, margin), (0, 0))
    g = lax.optimization_barrier(jnp.pad(gradient, padding))
    g = [g[:, :, margin - j : margin - j + span] for j in range(size)]
    g = lax.optimization_barrier(jnp.concatenate(g, axis=-1))
    product = _product(x, g).reshape(size, images.shape[-1], size, gradient.shape[-1])
    return product.transpose(0, 2, 1, 3)


def _by_taps(images: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """The weight gradient as one product for each of the kernel's k^2 taps."""
    side, (height, width) = size // 2, gradient.shape[1:3]
    x = jnp.pad(images, ((0, 0), (side, side), (side, side), (0, 0)))
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    products = [
        _product(x[:, i : i + rows : stride, j : j + columns : stride], gradient)
        for i in range(size)
        for j in range(size)
    ]
    return jnp.stack(products).reshape(size, size, images.shape[-1], gradient.shape[-1])


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """`sum x y^T` over all axes but the last, in float32 at least."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    dtype = np.promote_types(x.dtype, np.float32)
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=dtype)
