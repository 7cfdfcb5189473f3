"""Classifiers of images: a table of factories, of which a model of your own is one more.

A factory is called with `rngs`, `num_classes` and `in_channels`, and gives an `nnx.Module` that
maps images `[batch, h, w, in_channels]` to logits `[batch, num_classes]`. Those of the table also
take `dtype` (of the computation), `width` (channels of the first stage, or size of a token),
`head_scale` (of a `NormalizedHead`; None is a linear layer) and `image_size` (the side of square
images, on which only a transformer depends).
"""

from collections.abc import Callable
from functools import partial

from flax import nnx

from edl_jax.models.resnet import ResNet
from edl_jax.models.vit import VisionTransformer

ModelFactory = Callable[..., nnx.Module]

MODELS: dict[str, ModelFactory] = {
    "resnet8": partial(ResNet, (1, 1, 1)),
    "resnet20": partial(ResNet, (3, 3, 3)),
    "resnet32": partial(ResNet, (5, 5, 5)),
    "resnet44": partial(ResNet, (7, 7, 7)),
    "resnet56": partial(ResNet, (9, 9, 9)),
    "resnet18": partial(ResNet, (2, 2, 2, 2), width=64, projection=True),
    "resnet34": partial(ResNet, (3, 4, 6, 3), width=64, projection=True),
    "resnet50": partial(ResNet, (3, 4, 6, 3), width=64, projection=True, bottleneck=True),
    "vit_tiny": partial(VisionTransformer, width=192, depth=12, heads=3, patch=4),
}
