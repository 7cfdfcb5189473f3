"""Wide residual networks for small images, as Flax NNX modules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.models.layers import batch_norm, classifier_head, convolution


class WideResNetArchitecture(NamedTuple):
    """The shape of one wide residual network, WRN-`depth`-`widening`.

    Attributes:
      depth: layers with weights along the longest path, `6n + 4` for three stages of `n` blocks.
      widening: factor of the channels in the stages, which are `width`, `2 width` and `4 width`
        times it; the stem has `width` itself.
      width: default number of channels before widening.
    """

    depth: int
    widening: int
    width: int = 16


class PreActivationBlock(nnx.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, around a shortcut (He et al. 2016b, Fig. 4e).

    Where the shape changes, the shortcut is a 1x1 convolution of what the first ReLU gives.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        dtype: Any,
        norm_axis: str | None,
        rngs: nnx.Rngs,
    ):
        convolving = {"dtype": dtype, "rngs": rngs}
        self.norm1 = batch_norm(in_channels, norm_axis=norm_axis, rngs=rngs)
        self.conv1 = convolution(in_channels, out_channels, kernel=3, stride=stride, **convolving)
        self.norm2 = batch_norm(out_channels, norm_axis=norm_axis, rngs=rngs)
        self.conv2 = convolution(out_channels, out_channels, kernel=3, stride=1, **convolving)
        changes_shape = stride != 1 or in_channels != out_channels
        self.project = (
            convolution(in_channels, out_channels, kernel=1, stride=stride, **convolving)
            if changes_shape
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, h, w, in_channels]` to `[batch, h', w', out_channels]`."""
        y = nnx.relu(self.norm1(x))
        shortcut = x if self.project is None else self.project(y)
        y = self.conv2(nnx.relu(self.norm2(self.conv1(y))))
        return y + shortcut


class WideResNet(nnx.Module):
    """Wide residual network: 3x3 stem, three stages, batch norm and ReLU, average pool, head.

    Without dropout. Modes, dtypes and use inside `jax.grad` are those of `ResNet`.

    Args:
      architecture: depth and widening.
      width: channels of the stem, and of the first stage before widening.
      num_classes: number of logits.
      in_channels: channels of the images.
      dtype: compute dtype of the body; the pooling and the head are float32.
      head_scale: scale of a `NormalizedHead`; None is a linear head.
      norm_axis: mapped axis over which batch statistics are averaged; None keeps them local.
      rngs: source of the initial weights.

    References:
      Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016, https://arxiv.org/abs/1605.07146
      He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", ECCV 2016 (2016b),
      https://arxiv.org/abs/1603.05027
    """

    def __init__(
        self,
        architecture: WideResNetArchitecture,
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
        self.stem = convolution(in_channels, width, kernel=3, stride=1, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List()
        channels = width
        for stage in range(3):
            wide = width * architecture.widening * 2**stage
            for index in range((architecture.depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(PreActivationBlock(channels, wide, stride=stride, **options))
                channels = wide
        self.norm = batch_norm(channels, norm_axis=norm_axis, rngs=rngs)
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
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(self.norm(x))
        return self.head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
