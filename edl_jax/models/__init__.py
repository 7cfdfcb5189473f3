"""Classifiers of images: a table of factories, to which every file of this folder may add its own.

A factory is called with `rngs`, `num_classes` and `in_channels`, and gives an `nnx.Module` that
maps images `[batch, h, w, in_channels]` to logits `[batch, num_classes]`. Those of the table also
take `dtype` (of the computation), `width` (channels of the first stage, or size of a token),
`head_scale` (of a `NormalizedHead`; None is a linear layer) and `image_size` (the side of square
images, on which only a transformer depends).
"""

import importlib
import pkgutil
from collections.abc import Callable

from flax import nnx

ModelFactory = Callable[..., nnx.Module]

MODELS: dict[str, ModelFactory] = {}
for _file in pkgutil.iter_modules(__path__, f"{__name__}."):
    MODELS |= getattr(importlib.import_module(_file.name), "MODELS", {})
