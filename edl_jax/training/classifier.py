"""The classifier that is trained: made from a key, and its logits in training and evaluation."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from edl_jax.data.augmentation import normalize
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError
from edl_jax.losses.method import as_keys, as_words
from edl_jax.models import MODELS, ModelFactory
from edl_jax.models.convolution import for_loops
from edl_jax.training.config import TrainConfig

AXIS = "data"  # the mapped axis of the devices that share a batch
# Parameters, and all else that it carries: statistics of batch norm, random streams as words.
Weights = tuple[nnx.State, nnx.State]


class Classifier:
    """A model as pure functions of its weights, for one device of the axis "data"."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        dtype: DTypeLike,
        model: ModelFactory | None = None,
    ):
        """`model` replaces that of `config`; it is checked."""
        self._build = make_build(config, dataset, dtype, model)
        self.mean, self.std, self.dtype = dataset.mean, dataset.std, dtype
        self._abstract = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self.graph, self.params, _ = nnx.split(self._abstract, nnx.Param, ...)

    def in_loops(self, mesh: Mesh) -> "Classifier":
        """The same classifier in a form that is quick in loops on these devices."""
        if not on_cpu(mesh):
            return self
        looped, model = copy.copy(self), nnx.clone(self._abstract)
        for_loops(model)
        looped.graph = nnx.split(model, nnx.Param, ...)[0]
        return looped

    def init(self, key: jax.Array) -> Weights:
        """Initial weights."""
        _, params, rest = nnx.split(self._build(key), nnx.Param, ...)
        return params, as_words(rest)

    def trained(self, weights: Weights, images: jax.Array) -> tuple[jax.Array, nnx.State]:
        """Logits of prepared images in training mode, and what it carries after."""
        params, rest = weights
        keys, others = nnx.split_state(as_keys(rest), nnx.RngKey, ...)
        # Each device draws its own noise. Keys stay as they are, and the counts beside them grow.
        fold = jax.vmap(partial(jax.random.fold_in, data=jax.lax.axis_index(AXIS)))
        own = jax.tree.map(lambda key: fold(key.ravel()).reshape(key.shape), keys)
        # Copied, because a model may only update variables made at its own level of tracing.
        model: Any = nnx.merge(self.graph, params, own, others, copy=True)
        model.train()
        logits = model(images)
        others = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngKey, nnx.Intermediate)))
        return logits, as_words(nnx.merge_state(keys, others))

    def evaluated(self, weights: Weights, images: jax.Array) -> jax.Array:
        """Logits of images, uint8, in evaluation mode."""
        model: Any = nnx.merge(self.graph, *as_keys(weights))
        model.eval()
        return model(normalize(images, self.mean, self.std, self.dtype))


def make_build(
    config: TrainConfig, dataset: Dataset, dtype: DTypeLike, model: ModelFactory | None = None
) -> Callable[[jax.Array], nnx.Module]:
    """The function that makes the classifier from a key; a model of a user's own is checked."""
    shape, num_classes = dataset.train_images.shape[1:], dataset.num_classes
    factory = model or partial(MODELS[config.model], image_size=shape[0], dtype=dtype)
    settings = {"width": config.width, "head_scale": config.head_scale}
    options = {name: value for name, value in settings.items() if value is not None}
    options |= {"num_classes": num_classes, "in_channels": shape[-1]}

    def build(key: jax.Array) -> nnx.Module:
        module = factory(rngs=nnx.Rngs(key), **options)
        if config.sync_batch_norm:
            module.set_attributes(nnx.BatchNorm, axis_name=AXIS, raise_if_not_found=False)
        return module

    def logits() -> jax.Array:
        module = factory(rngs=nnx.Rngs(0), **options)
        module.train()
        before = jax.tree.structure(nnx.state(module))
        found = module(jnp.zeros((2, *shape), dtype))  # pyright: ignore[reportCallIssue]
        if jax.tree.structure(nnx.state(module, nnx.Not(nnx.Intermediate))) != before:
            raise ValueError("its call makes variables, or leaves some out")
        return found

    if model is not None:
        try:
            of_two = nnx.eval_shape(logits)
            if of_two.shape != (2, num_classes):
                raise ValueError(f"it gives {of_two.shape} for 2 images")
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"model {model!r} cannot be used ({error}); expected a function or class that "
                f"takes {', '.join(['rngs', *options])} and gives an nnx.Module, which maps images "
                f"[batch, {', '.join(map(str, shape))}] to logits [batch, {num_classes}]."
            ) from error
    return build


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"
