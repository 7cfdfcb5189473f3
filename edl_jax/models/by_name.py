"""Networks by name."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx

from edl_jax.errors import ConfigError
from edl_jax.models.resnet import ResNet, ResNetArchitecture
from edl_jax.models.vit import VisionTransformer, ViTArchitecture

Model = ResNet | VisionTransformer

MODELS: dict[str, ResNetArchitecture | ViTArchitecture] = {
    "resnet8": ResNetArchitecture((1, 1, 1), width=16, projection=False),
    "resnet20": ResNetArchitecture((3, 3, 3), width=16, projection=False),
    "resnet32": ResNetArchitecture((5, 5, 5), width=16, projection=False),
    "resnet44": ResNetArchitecture((7, 7, 7), width=16, projection=False),
    "resnet56": ResNetArchitecture((9, 9, 9), width=16, projection=False),
    "resnet18": ResNetArchitecture((2, 2, 2, 2), width=64, projection=True),
    "resnet34": ResNetArchitecture((3, 4, 6, 3), width=64, projection=True),
    "resnet50": ResNetArchitecture((3, 4, 6, 3), width=64, projection=True, bottleneck=True),
    "vit_tiny": ViTArchitecture(width=192, depth=12, heads=3, patch=4),
}
"""Every network that `create_model` knows, by name."""


def create_model(
    name: str,
    *,
    width: int | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    dtype: Any = jnp.float32,
    head_scale: float | None = None,
    norm_axis: str | None = None,
    rngs: nnx.Rngs,
) -> Model:
    """Builds a network by name, in training mode.

    Args:
      name: a key of `MODELS`.
      width: channels of the first stage, or size of a transformer's tokens; None is the
        architecture's own.
      num_classes: number of logits.
      in_channels: channels of the images, 1 or 3.
      image_size: side of the square images; only a transformer depends on it.
      dtype: compute dtype; bfloat16 suits accelerators, float32 the CPU.
      head_scale: makes logits cosines between features and class weights, times this scale; None
        is a linear layer.
      norm_axis: name of a mapped axis (of `jax.shard_map` or `jax.vmap`) over which the statistics
        of batch norm are averaged while training; None keeps them local. A transformer has none.
      rngs: source of the initial weights.

    Returns:
      The network, which maps images `[batch, h, w, in_channels]` to logits `[batch, num_classes]`.

    Raises:
      ConfigError: the name is unknown, a size is not positive, the scale is not positive and
        finite, or a transformer cannot have this width or image size.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    architecture = MODELS[name]
    width = architecture.width if width is None else width
    sizes = {"width": width, "num_classes": num_classes, "in_channels": in_channels}
    for field, value in {**sizes, "image_size": image_size}.items():
        if value < 1:
            raise ConfigError(f"{field} must be at least 1, got {value}")
    if head_scale is not None and not 0 < head_scale < math.inf:
        raise ConfigError(f"head_scale must be positive and finite, got {head_scale}")
    shared: dict[str, Any] = {
        **sizes,
        "dtype": dtype,
        "head_scale": head_scale,
        "rngs": rngs,
    }
    if isinstance(architecture, ViTArchitecture):
        return VisionTransformer(architecture, image_size=image_size, **shared)
    return ResNet(architecture, norm_axis=norm_axis, **shared)
