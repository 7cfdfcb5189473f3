"""The classifier of a training: a network by name, or one of your own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.data.dataset import Dataset
from edl_jax.errors import ConfigError
from edl_jax.models.by_name import create_model
from edl_jax.training.config import TrainConfig


def make_build(
    config: TrainConfig,
    dataset: Dataset,
    dtype: Any,
    norm_axis: str,
    model: Callable[..., nnx.Module] | None = None,
) -> Callable[[jax.Array], nnx.Module]:
    """The function that makes the classifier from a key.

    Args:
      config: names the network, where none is given.
      dataset: the classes, and the shape of the images.
      dtype: compute dtype of a network by name, and of the images that one of your own sees.
      norm_axis: the mapped axis of the devices, for `sync_batch_norm`.
      model: `(rngs, num_classes, in_channels) -> module`, called with keywords.

    Raises:
      ConfigError: if the model cannot be called so, does not give logits `[batch, num_classes]`, or
        a setting is given that only networks by name know.
    """
    shape, num_classes = dataset.train_images.shape[1:], dataset.num_classes
    common = {"num_classes": num_classes, "in_channels": shape[-1]}

    def by_name(key: jax.Array) -> nnx.Module:
        return create_model(
            config.model,
            **common,
            width=config.width,
            image_size=shape[0],
            dtype=dtype,
            head_scale=config.head_scale,
            norm_axis=norm_axis if config.sync_batch_norm else None,
            rngs=nnx.Rngs(key),
        )

    if model is None:
        return by_name
    for field, default in (("width", None), ("head_scale", None), ("sync_batch_norm", False)):
        if (value := getattr(config, field)) != default:
            raise ConfigError(
                f"TrainConfig.{field} is {value!r} with a model of your own, which does not know "
                f"of it; leave it at {default!r}."
            )

    def own(key: jax.Array) -> nnx.Module:
        return model(rngs=nnx.Rngs(key), **common)

    def logits() -> Any:
        module = own(jax.random.key(0))
        module.train()
        return module(jnp.zeros((2, *shape), dtype))  # pyright: ignore[reportCallIssue]

    try:
        found = nnx.eval_shape(logits)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model {model!r} cannot be used ({error}); expected a function or class that takes "
            "rngs, num_classes and in_channels and gives an nnx.Module, which maps images "
            f"[batch, {', '.join(map(str, shape))}] to logits [batch, {num_classes}]."
        ) from error
    if getattr(found, "shape", None) != (2, num_classes):
        raise ConfigError(
            f"model {model!r} gives {getattr(found, 'shape', found)} for 2 images; expected logits "
            f"(2, {num_classes})."
        )
    return own
