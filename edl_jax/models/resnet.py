"""Residual networks in their form for small images, as Flax NNX modules."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from edl_jax.models import MODELS
from edl_jax.models.layers import ConvNorm, classifier_head


class Block(nnx.Module):
    """Convolutions around a shortcut, with ReLU between them and after the sum.

    Two of 3x3, or with a bottleneck 1x1, 3x3 and 1x1, whose output has `4 width` channels. There
    the 3x3 convolution has the stride, as in most implementations since; in the paper the first 1x1
    convolution does, which never sees three quarters of the image.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, bottleneck: bool, projection: bool, **options
    ):
        conv, outputs = partial(ConvNorm, **options), 4 * width if bottleneck else width
        if bottleneck:
            self.first = conv(inputs, width, kernel=1, stride=1)
            self.second = conv(width, width, kernel=3, stride=stride)
            self.third = conv(width, outputs, kernel=1, stride=1)
        else:
            self.first = conv(inputs, width, kernel=3, stride=stride)
            self.second = conv(width, width, kernel=3, stride=1)
            self.third = None
        self.shortcut = Shortcut(inputs, outputs, stride, projection, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, inputs]` to `[batch, h', w', outputs]`."""
        y = self.second(nnx.relu(self.first(x)))
        if self.third is not None:
            y = self.third(nnx.relu(y))
        return nnx.relu(y + self.shortcut(x))


class Shortcut(nnx.Module):
    """A block's input in its output's shape: subsampled and padded, or by a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool, **options):
        needs_projection = projection and (stride != 1 or inputs != outputs)
        projecting = partial(ConvNorm, inputs, outputs, kernel=1, stride=stride)
        self.project = projecting(**options) if needs_projection else None
        self.stride = stride
        self.extra_channels = outputs - inputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, inputs]` to `[batch, h', w', outputs]`."""
        if self.project is not None:
            return self.project(x)
        before = self.extra_channels // 2
        channels = (before, self.extra_channels - before)
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), channels))


class ResNet(nnx.Module):
    """Residual network: 3x3 stem, stages of blocks, global average pool, head.

    As for small images in He et al., https://arxiv.org/abs/1512.03385. It starts in training mode;
    `eval()` and `train()` switch. Parameters, statistics, pooling and head are float32.

    Args:
      stage_blocks: blocks in each stage. Every stage after the first halves the image and doubles
        the channels. `(n, n, n)` is the CIFAR network of `6n + 2` layers.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      projection: whether shortcuts between stages are convolutions.
      bottleneck: whether blocks are bottlenecks.

    All other arguments are those of every factory in `edl_jax.models`.
    """

    def __init__(
        self,
        stage_blocks: Sequence[int],
        *,
        width: int = 16,
        projection: bool = False,
        bottleneck: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        head_scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        self.stem = ConvNorm(in_channels, width, kernel=3, stride=1, dtype=dtype, rngs=rngs)
        self.blocks, channels = nnx.List(), width
        for stage, count in enumerate(stage_blocks):
            inner = width * 2**stage
            for index in range(count):
                shape = channels, inner, 2 if stage > 0 and index == 0 else 1
                block = Block(*shape, bottleneck, projection, dtype=dtype, rngs=rngs)
                self.blocks.append(block)
                channels = 4 * inner if bottleneck else inner
        self.head = classifier_head(channels, num_classes, head_scale, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, num_classes]`, float32, of images `[batch, h, w, channels]`."""
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


MODELS.register("resnet8")(partial(ResNet, (1, 1, 1)))
MODELS.register("resnet20")(partial(ResNet, (3, 3, 3)))
_of_imagenet = partial(ResNet, width=64, projection=True)
MODELS.register("resnet18")(partial(_of_imagenet, (2, 2, 2, 2)))
MODELS.register("resnet50")(partial(_of_imagenet, (3, 4, 6, 3), bottleneck=True))
