"""Losses shipped inside the package."""

from importlib import resources

from edl_jax.errors import ConfigError
from edl_jax.frozen.evolved_loss import EvolvedLoss

PRETRAINED = {"edl": "evolved by configs/pretrain_edl.py: class-agnostic, surprisal margins"}


def load_pretrained(name: str = "edl") -> EvolvedLoss:
    """A loss evolved by a config of this project's repository.

    Args:
      name: one of `PRETRAINED`.

    Raises:
      ConfigError: for an unknown name.
    """
    if not isinstance(name, str) or name not in PRETRAINED:
        raise ConfigError(
            f"there is no pretrained loss {name!r}; expected one of {', '.join(PRETRAINED)}, or a "
            "file for EvolvedLoss.load."
        )
    with resources.as_file(resources.files("edl_jax.frozen") / f"{name}.safetensors") as path:
        return EvolvedLoss.load(path)
