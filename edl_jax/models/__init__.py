"""Classifiers of images: a table of factories, to which the files of this folder add their own.

A factory is called with `rngs`, `num_classes` and `in_channels`, and gives an `nnx.Module` that
maps images `[batch, h, w, in_channels]` to logits `[batch, num_classes]`. Those of the table also
take `dtype` (of the computation), `width` (channels of the first stage, or size of a token),
`head_scale` (of a `NormalizedHead`; None is a linear layer) and `image_size` (the side of square
images, on which only a transformer depends).
"""

from collections.abc import Callable

from flax import nnx

from edl_jax.registry import Registry, load_parts

ModelFactory = Callable[..., nnx.Module]

MODELS: Registry[ModelFactory] = Registry("model")
load_parts(__name__, MODELS)
