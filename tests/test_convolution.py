import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from edl_jax.models.convolution import convolve


def plain(images, kernel, stride):
    side = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((side, side), (side, side)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def ours(images, kernel, stride):
    return convolve(images, kernel, (stride, stride), None)


# Of both kinds of product: few channels or a small image, a stride, or neither.
CASES = [
    (shape, size, stride)
    for shape, size, stride in itertools.product(
        [(2, 9, 8, 8), (2, 8, 11, 3), (3, 5, 4, 9), (1, 8, 9, 16)], [1, 3, 5], [1, 2]
    )
]


@pytest.mark.parametrize(("shape", "size", "stride"), CASES)
def test_value_and_gradients_are_xlas_own(shape, size, stride):
    draws = np.random.default_rng(0)
    images = draws.normal(size=shape).astype(np.float32)
    kernel = draws.normal(size=(size, size, shape[-1], 4)).astype(np.float32)
    weights = draws.normal(size=jax.eval_shape(lambda: plain(images, kernel, stride)).shape)

    @jax.jit
    def both(images, kernel):
        def weighted(images, kernel, function):
            return jnp.sum(function(images, kernel, stride) * weights.astype(np.float32))

        gradients = jax.value_and_grad(weighted, (0, 1))
        return gradients(images, kernel, ours), gradients(images, kernel, plain)

    found, expected = jax.device_get(both(images, kernel))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_gradients_are_those_of_finite_differences():
    draws = np.random.default_rng(0)
    images, kernel = draws.normal(size=(1, 8, 8, 8)), draws.normal(size=(3, 3, 8, 2))
    arguments = images.astype(np.float32), kernel.astype(np.float32)
    check_grads(jax.jit(lambda x, w: ours(x, w, 1)), arguments, order=1, modes=["rev"], rtol=1e-2)


def test_bfloat16_gradients_are_summed_in_float32():
    images, kernel = np.ones((4, 32, 32, 8), jnp.bfloat16), np.ones((3, 3, 8, 2), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda w: ours(images, w, 1).sum().astype(jnp.float32)))(kernel)
    gradient = np.asarray(gradient)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient[1, 1], 4096)  # in bfloat16, a sum of ones ends at 256
    np.testing.assert_array_equal(gradient[0, 1], jnp.bfloat16(4 * 31 * 32))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_xlas_weight_gradient(platform):
    images, kernel = jnp.ones((2, 8, 8, 8)), jnp.ones((3, 3, 8, 8))
    gradient = jax.jit(jax.grad(lambda w: ours(images, w, 1).sum()))
    text = jax.export.export(gradient, platforms=[platform])(kernel).mlir_module()
    assert "stablehlo.convolution" in text
    assert "dot_general" not in text
    assert "dot_general" in jax.export.export(gradient, platforms=["cpu"])(kernel).mlir_module()


def test_under_vmap():
    draws = np.random.default_rng(0)
    images = draws.normal(size=(3, 2, 8, 8, 8)).astype(np.float32)
    kernels = draws.normal(size=(3, 3, 3, 8, 4)).astype(np.float32)

    @jax.jit
    def gradient(images, kernel):
        return jax.grad(lambda w: jnp.sum(ours(images, w, 1) ** 2))(kernel)

    together = jax.jit(jax.vmap(gradient))(images, kernels)
    for i in range(3):
        np.testing.assert_allclose(together[i], gradient(images[i], kernels[i]), rtol=1e-3)
