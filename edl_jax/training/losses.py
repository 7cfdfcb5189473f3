"""Losses by name."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from edl_jax.errors import ConfigError
from edl_jax.frozen import PRETRAINED, EvolvedLoss, load_pretrained

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def check_loss_name(name: str) -> None:
    """Refuse a name that `resolve_loss` cannot know, without reading a file.

    Raises:
      ConfigError: naming it and the known names.
    """
    if name != "cross_entropy" and name not in PRETRAINED and not name.endswith(".safetensors"):
        known = ", ".join(["cross_entropy", *PRETRAINED])
        raise ConfigError(f"loss is {name!r}; expected one of {known}, or a file *.safetensors.")


def resolve_loss(name: str) -> Loss:
    """The loss that `TrainConfig.loss` names: logits and integer labels to per-example losses.

    Args:
      name: "cross_entropy", one of `PRETRAINED`, or the path of a loss file (`*.safetensors`).

    Raises:
      ConfigError: for an unknown name.
      LossFileError: if the file cannot be used.
    """
    check_loss_name(name)
    if name == "cross_entropy":
        return optax.losses.softmax_cross_entropy_with_integer_labels
    if name in PRETRAINED:
        return load_pretrained(name)
    return EvolvedLoss.load(Path(name))


def describe_loss(loss: Loss) -> str:
    """What tells a loss from another: a digest of an evolved one, the name of a function."""
    if not isinstance(loss, EvolvedLoss):
        return getattr(loss, "__qualname__", type(loss).__qualname__)
    digest = hashlib.sha256(repr(loss.architecture).encode())
    for array in jax.tree.leaves(loss):
        digest.update(np.asarray(array).tobytes())
    return f"EvolvedLoss {digest.hexdigest()[:16]}"
