"""Losses by name."""

from collections.abc import Callable
from pathlib import Path

import jax
import optax

from edl_jax.errors import ConfigError
from edl_jax.frozen import PRETRAINED, EvolvedLoss, load_pretrained

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def resolve_loss(name: str) -> Loss:
    """The loss that `TrainConfig.loss` names: logits and integer labels to per-example losses.

    Args:
      name: "cross_entropy", one of `PRETRAINED`, or the path of a loss file (`*.safetensors`).

    Raises:
      ConfigError: for an unknown name.
      LossFileError: if the file cannot be used.
    """
    if name == "cross_entropy":
        return optax.losses.softmax_cross_entropy_with_integer_labels
    if name in PRETRAINED:
        return load_pretrained(name)
    if name.endswith(".safetensors"):
        return EvolvedLoss.load(Path(name))
    known = ", ".join(["cross_entropy", *PRETRAINED])
    raise ConfigError(f"loss is {name!r}; expected one of {known}, or a file *.safetensors.")
