"""Residual networks for small images: the CIFAR family and ResNet-18, as Flax NNX modules."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.errors import ConfigError


class Architecture(NamedTuple):
    """The shape of one residual network.

    Attributes:
      stage_blocks: basic blocks in each stage. Every stage after the first halves the image and
        doubles the channels. `(n, n, n)` is the CIFAR network of `6n + 2` layers.
      width: default number of channels in the first stage.
      projection: shortcut between stages: a 1x1 convolution with batch norm (option B), or
        subsampling and zero-padded channels, which has no parameters (option A).
    """

    stage_blocks: tuple[int, ...]
    width: int
    projection: bool


MODELS = {
    "resnet8": Architecture((1, 1, 1), width=16, projection=False),
    "resnet20": Architecture((3, 3, 3), width=16, projection=False),
    "resnet18": Architecture((2, 2, 2, 2), width=64, projection=True),
}


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch norm.

    The convolution runs in `dtype`. The normalisation runs in float32, so that the running
    statistics are not rounded when they are applied.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        # Explicit padding: "SAME" with stride 2 would shift the image against the shortcut.
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            out_channels, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs
        )
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', out_channels]` in `dtype`."""
        return self.norm(self.conv(x)).astype(self.dtype)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut, with ReLU after each sum (He et al. 2016, Fig. 2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        projection: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        conv = partial(ConvNorm, dtype=dtype, rngs=rngs)
        self.first = conv(in_channels, out_channels, kernel=3, stride=stride)
        self.second = conv(out_channels, out_channels, kernel=3, stride=1)
        needs_projection = projection and (stride != 1 or in_channels != out_channels)
        projecting = partial(conv, in_channels, out_channels, kernel=1, stride=stride)
        self.project = projecting() if needs_projection else None
        self.stride = stride
        self.extra_channels = out_channels - in_channels

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', out_channels]`."""
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + self.shortcut(x))

    def shortcut(self, x: jax.Array) -> jax.Array:
        """The input brought to the block's output shape."""
        if self.project is not None:
            return self.project(x)
        before = self.extra_channels // 2
        channels = (before, self.extra_channels - before)
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))


class ResNet(nnx.Module):
    """Residual network: 3x3 stem, stages of basic blocks, global average pool, linear head.

    It starts in training mode; `eval()` and `train()` switch. Parameters and statistics are float32
    whatever `dtype` is. Inside `jax.grad`, `nnx.merge` the state with `copy=True`.

    Args:
      architecture: stages and shortcuts, such as `MODELS["resnet20"]`.
      width: channels of the first stage.
      num_classes: number of logits.
      in_channels: channels of the images.
      dtype: compute dtype of the body; the pooling and the head are float32.
      rngs: source of the initial weights.

    References:
      He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016,
      https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        width: int,
        num_classes: int,
        in_channels: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.stem = ConvNorm(in_channels, width, kernel=3, stride=1, dtype=dtype, rngs=rngs)
        block = partial(BasicBlock, projection=architecture.projection, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List()
        channels = width
        for stage, count in enumerate(architecture.stage_blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(block(channels, width * 2**stage, stride=stride))
                channels = width * 2**stage
        self.head = nnx.Linear(channels, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits.

        Args:
          images: normalised images, `[batch, h, w, in_channels]`, floating point.

        Returns:
          Logits, `[batch, num_classes]`, float32.
        """
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


def create_model(
    name: str,
    *,
    width: int | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> ResNet:
    """Builds a network by name, in training mode.

    Args:
      name: a key of `MODELS`.
      width: channels of the first stage; None is the architecture's own.
      num_classes: number of logits.
      in_channels: channels of the images, 1 or 3.
      dtype: compute dtype; bfloat16 suits accelerators, float32 the CPU.
      rngs: source of the initial weights.

    Returns:
      The network.

    Raises:
      ConfigError: the name is unknown or a size is not positive.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    architecture = MODELS[name]
    width = architecture.width if width is None else width
    sizes = {"width": width, "num_classes": num_classes, "in_channels": in_channels}
    for field, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{field} must be at least 1, got {value}")
    return ResNet(architecture, **sizes, dtype=dtype, rngs=rngs)
