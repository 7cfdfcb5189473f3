"""Vision transformers, as Flax NNX modules."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from edl_jax.errors import ConfigError, InputError
from edl_jax.models import MODELS
from edl_jax.models.layers import classifier_head

_INIT = nnx.initializers.truncated_normal(0.02)  # cut at two standard deviations
_MLP_RATIO = 4
_layer_norm = partial(nnx.LayerNorm, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False)


class Attention(nnx.Module):
    """Multi-head self-attention of all tokens, softmax in float32 (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = {"kernel_init": _INIT, "dtype": dtype, "rngs": rngs}
        self.query_key_value = nnx.Linear(width, 3 * width, **linear)
        self.out = nnx.Linear(width, width, **linear)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, tokens, width]` to the same shape."""
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        parts = jnp.unstack(self.query_key_value(x).reshape(shape), axis=2)
        return self.out(jax.nn.dot_product_attention(*parts).reshape(x.shape))


class TransformerBlock(nnx.Module):
    """Attention, then an MLP with GELU, each of the layer norm and around a shortcut (pre-norm)."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        linear = {"kernel_init": _INIT, "dtype": dtype, "rngs": rngs}
        self.norm1 = _layer_norm(width, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = _layer_norm(width, rngs=rngs)
        self.expand = nnx.Linear(width, _MLP_RATIO * width, **linear)
        self.contract = nnx.Linear(_MLP_RATIO * width, width, **linear)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, tokens, width]` to the same shape and dtype."""
        x = x + self.attention(self.norm1(x))
        hidden = nnx.gelu(self.expand(self.norm2(x)), approximate=False)
        return x + self.contract(hidden)


class VisionTransformer(nnx.Module):
    """Vision transformer: patches, class token, learned positions, pre-norm blocks, head.

    It has no batch statistics and no dropout, so that `train()` and `eval()` change nothing.
    Parameters, layer norms, softmax and head are float32 whatever `dtype` is.

    Of Dosovitskiy et al., https://arxiv.org/abs/2010.11929, with initial weights as in DeiT,
    https://arxiv.org/abs/2012.12877: truncated normal of scale 0.02, biases zero; only the patches'
    embedding is LeCun normal, so that tokens of normalized images start with unit variance.

    Args:
      width: size of a token.
      depth: number of blocks.
      heads: attention heads; they share `width` evenly.
      patch: side of the square patches, in pixels.

    All other arguments are those of every factory in `edl_jax.models`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        dtype: DTypeLike = jnp.float32,
        head_scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        if image_size % patch or width % heads:
            raise ConfigError(
                f"image_size is {image_size} and width {width}; a transformer of patches of "
                f"{patch} pixels and {heads} heads expects multiples of {patch} and {heads}, such "
                f"as {patch * max(1, round(image_size / patch))} and "
                f"{heads * max(1, round(width / heads))}."
            )
        size = (patch, patch)
        self.embed = nnx.Conv(
            in_channels, width, size, strides=patch, padding="VALID", dtype=dtype, rngs=rngs
        )
        tokens = (image_size // patch) ** 2 + 1
        self.class_token = nnx.Param(_INIT(rngs.params(), (1, 1, width), jnp.float32))
        self.positions = nnx.Param(_INIT(rngs.params(), (1, tokens, width), jnp.float32))
        self.blocks = nnx.List(
            [TransformerBlock(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth)]
        )
        self.norm = _layer_norm(width, rngs=rngs)
        self.head = classifier_head(width, num_classes, head_scale, kernel_init=_INIT, rngs=rngs)
        self.image_size = image_size
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits `[batch, num_classes]`, float32, of images `[batch, h, w, channels]`."""
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise InputError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; this transformer was made "
                f"for {self.image_size}x{self.image_size}. Make it with their image_size, or "
                "resize them to a square by TrainConfig.data.image_size."
            )
        patches = self.embed(images).reshape(len(images), -1, self.embed.out_features)
        token, positions = (x[...].astype(self.dtype) for x in (self.class_token, self.positions))
        tokens = jnp.broadcast_to(token, (len(images), *token.shape[1:]))
        x = jnp.concatenate([tokens, patches], axis=1) + positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


MODELS.register("vit_tiny")(partial(VisionTransformer, width=192, depth=12, heads=3, patch=4))
