"""Residual networks in their form for small images, as Flax NNX modules."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.models.layers import ConvNorm, classifier_head


class ResNetArchitecture(NamedTuple):
    """The shape of one residual network.

    Attributes:
      stage_blocks: blocks in each stage. Every stage after the first halves the image and doubles
        the channels. `(n, n, n)` of basic blocks is the CIFAR network of `6n + 2` layers.
      width: default number of channels in the first stage (of the 3x3 convolution, where blocks are
        bottlenecks).
      projection: shortcut between stages: a 1x1 convolution with batch norm (option B), or
        subsampling and zero-padded channels, which has no parameters (option A).
      bottleneck: whether blocks are bottlenecks, which have four times `width` channels outside.
    """

    stage_blocks: tuple[int, ...]
    width: int
    projection: bool
    bottleneck: bool = False


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut, with ReLU after each sum (He et al. 2016, Fig. 2)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int, projection: bool, **options):
        conv = partial(ConvNorm, **options)
        self.first = conv(in_channels, width, kernel=3, stride=stride)
        self.second = conv(width, width, kernel=3, stride=1)
        self.shortcut = Shortcut(in_channels, width, stride, projection, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', width]`."""
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + self.shortcut(x))


class BottleneckBlock(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016, Fig. 5).

    The 3x3 convolution has the stride, as in most implementations since; in the paper the first
    1x1 convolution does, which never sees three quarters of the image.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, projection: bool, **options):
        conv = partial(ConvNorm, **options)
        out_channels = self.expansion * width
        self.first = conv(in_channels, width, kernel=1, stride=1)
        self.second = conv(width, width, kernel=3, stride=stride)
        self.third = conv(width, out_channels, kernel=1, stride=1)
        self.shortcut = Shortcut(in_channels, out_channels, stride, projection, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', 4 width]`."""
        y = nnx.relu(self.second(nnx.relu(self.first(x))))
        return nnx.relu(self.third(y) + self.shortcut(x))


class Shortcut(nnx.Module):
    """A block's input brought to its output's shape, by option A or B of He et al. (2016)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, projection: bool, **options
    ):
        needs_projection = projection and (stride != 1 or in_channels != out_channels)
        projecting = partial(ConvNorm, in_channels, out_channels, kernel=1, stride=stride)
        self.project = projecting(**options) if needs_projection else None
        self.stride = stride
        self.extra_channels = out_channels - in_channels

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', out_channels]`."""
        if self.project is not None:
            return self.project(x)
        before = self.extra_channels // 2
        channels = (before, self.extra_channels - before)
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))


class ResNet(nnx.Module):
    """Residual network: 3x3 stem, stages of blocks, global average pool, head.

    It starts in training mode; `eval()` and `train()` switch. Parameters and statistics are float32
    whatever `dtype` is. Inside `jax.grad`, `nnx.merge` the state with `copy=True`.

    Args:
      architecture: stages, blocks and shortcuts.
      width: channels of the stem and the first stage's 3x3 convolutions.
      num_classes: number of logits.
      in_channels: channels of the images.
      dtype: compute dtype of the body; the pooling and the head are float32.
      head_scale: scale of a `NormalizedHead`; None is a linear head.
      norm_axis: mapped axis over which batch statistics are averaged; None keeps them local.
      rngs: source of the initial weights.

    References:
      He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016,
      https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self,
        architecture: ResNetArchitecture,
        *,
        width: int,
        num_classes: int,
        in_channels: int,
        dtype: Any,
        head_scale: float | None = None,
        norm_axis: str | None = None,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "norm_axis": norm_axis, "rngs": rngs}
        self.stem = ConvNorm(in_channels, width, kernel=3, stride=1, **options)
        block = BottleneckBlock if architecture.bottleneck else BasicBlock
        self.blocks = nnx.List()
        channels = width
        for stage, count in enumerate(architecture.stage_blocks):
            inner = width * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                projection = architecture.projection
                self.blocks.append(
                    block(channels, inner, stride=stride, projection=projection, **options)
                )
                channels = block.expansion * inner
        init = nnx.initializers.lecun_normal()
        self.head = classifier_head(
            channels, num_classes, scale=head_scale, kernel_init=init, rngs=rngs
        )

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
