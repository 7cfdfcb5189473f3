"""The layers that the networks of this folder share, as Flax NNX modules."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.models.convolution import convolve

_SMALLEST_NORM = 1e-6  # of a vector that has a direction; its square is far from underflow


def convolution(
    in_channels: int, out_channels: int, *, kernel: int, stride: int, dtype: Any, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without bias that keeps the image size divided by `stride`.

    The initial weights are He normal over the fan-out, `std = sqrt(2 / (kernel^2 out_channels))`.

    References:
      He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015,
      https://arxiv.org/abs/1502.01852
    """
    return nnx.Conv(
        in_channels,
        out_channels,
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


def batch_norm(channels: int, *, norm_axis: str | None, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch norm over all axes but the last, in float32 whatever the input's dtype is.

    In float32, so that the running statistics are not rounded when they are applied.

    Args:
      channels: size of the last axis.
      norm_axis: name of a mapped axis (of `jax.shard_map` or `jax.vmap`) over which the statistics
        of a training step are averaged, so that they are those of the whole batch; None keeps them
        local.
      rngs: source of the initial weights.
    """
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, axis_name=norm_axis, rngs=rngs
    )


class ConvNorm(nnx.Module):
    """Convolution without bias in `dtype`, then batch norm in float32."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        dtype: Any,
        norm_axis: str | None,
        rngs: nnx.Rngs,
    ):
        self.conv = convolution(
            in_channels, out_channels, kernel=kernel, stride=stride, dtype=dtype, rngs=rngs
        )
        self.norm = batch_norm(out_channels, norm_axis=norm_axis, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', out_channels]` in `dtype`."""
        return self.norm(self.conv(x)).astype(self.dtype)


class NormalizedHead(nnx.Module):
    r"""Logits that are scaled cosines, \(z_c = s \, \frac{f \cdot w_c}{|f| \, |w_c|}\), no bias.

    A feature vector or class weight of norm below 1e-6 has no direction: its cosines are 0 and no
    gradient reaches it.

    Args:
      features: size of the feature vectors.
      num_classes: number of logits.
      scale: the fixed factor `s`, the largest value that a logit can have.
      rngs: source of the initial weights, LeCun normal, of norm about 1.

    References:
      Wang et al., "CosFace: large margin cosine loss for deep face recognition", CVPR 2018,
      https://arxiv.org/abs/1801.09414 (its normalisation, without the margin)
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
    features: int,
    num_classes: int,
    *,
    scale: float | None,
    kernel_init: nnx.Initializer,
    rngs: nnx.Rngs,
) -> nnx.Linear | NormalizedHead:
    """The last layer, `[batch, features]` to logits `[batch, num_classes]`, in float32.

    Args:
      features: size of the feature vectors.
      num_classes: number of logits.
      scale: of a `NormalizedHead`; None is a linear layer with bias.
      kernel_init: initial weights of the linear layer.
      rngs: source of the initial weights.
    """
    if scale is not None:
        return NormalizedHead(features, num_classes, scale=scale, rngs=rngs)
    return nnx.Linear(features, num_classes, dtype=jnp.float32, kernel_init=kernel_init, rngs=rngs)


def _normalize(x: jax.Array, *, axis: int) -> jax.Array:
    """Vectors along `axis` divided by their norms; zeros where the norm is below 1e-6."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    has_direction = square >= _SMALLEST_NORM**2
    # The inner `where` keeps the gradient finite: the unused branch is differentiated too.
    return jnp.where(has_direction, x * jax.lax.rsqrt(jnp.where(has_direction, square, 1.0)), 0.0)
