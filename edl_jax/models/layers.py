"""The layers that the networks of this folder share, as Flax NNX modules."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.models.convolution import convolve

_SMALLEST_NORM = 1e-6  # of a vector that has a direction; its square is far from underflow


class ConvNorm(nnx.Module):
    """Convolution without bias in `dtype`, then batch norm in float32.

    The image size is divided by `stride`. Initial weights are He normal over the fan-out,
    `std = sqrt(2 / (kernel^2 outputs))` (He et al., https://arxiv.org/abs/1502.01852).
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, dtype: Any, rngs: nnx.Rngs
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            # Explicit: "SAME" with stride 2 would shift the image against the shortcut.
            padding=kernel // 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        # In float32, so that the running statistics are not rounded when they are applied.
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, dtype=jnp.float32, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, inputs]` to `[batch, h', w', outputs]` in `dtype`."""
        return self.norm(self.conv(x)).astype(self.dtype)


class NormalizedHead(nnx.Module):
    r"""Logits that are scaled cosines, \(z_c = s \, \frac{f \cdot w_c}{|f| \, |w_c|}\), no bias.

    The scale `s` is fixed. A feature vector or class weight of norm below 1e-6 has no direction:
    its cosines are 0 and no gradient reaches it. As in CosFace (Wang et al., CVPR 2018,
    https://arxiv.org/abs/1801.09414), without the margin.
    """

    def __init__(self, features: int, num_classes: int, *, scale: float, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (features, num_classes), jnp.float32))
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features `[batch, features]` to logits `[batch, num_classes]`, float32."""
        directions = _normalize(x.astype(jnp.float32), axis=1)
        kernel = _normalize(self.kernel[...], axis=0)
        return self.scale * jnp.matmul(directions, kernel, precision=jax.lax.Precision.HIGHEST)


def classifier_head(
    features: int, num_classes: int, scale: float | None, *, rngs: nnx.Rngs, **options: Any
) -> nnx.Linear | NormalizedHead:
    """The last layer, in float32: `nnx.Linear`, or a `NormalizedHead` where a scale is given."""
    if scale is not None:
        return NormalizedHead(features, num_classes, scale=scale, rngs=rngs)
    return nnx.Linear(features, num_classes, dtype=jnp.float32, rngs=rngs, **options)


def _normalize(x: jax.Array, *, axis: int) -> jax.Array:
    """Vectors along `axis` divided by their norms; zeros where the norm is below 1e-6."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    has_direction = square >= _SMALLEST_NORM**2
    # The inner `where` keeps the gradient finite: the unused branch is differentiated too.
    return jnp.where(has_direction, x * jax.lax.rsqrt(jnp.where(has_direction, square, 1.0)), 0.0)
