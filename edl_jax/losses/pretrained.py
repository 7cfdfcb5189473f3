"""Losses shipped inside the package."""

from importlib import resources

from edl_jax.errors import ConfigError
from edl_jax.losses.evolved_loss import EvolvedLoss

# Each was made by the config of its name, configs/pretrain_*.py, at the commit that results/ names.
PRETRAINED = {
    "edl": "for any number of classes, ordered by surprisal",
    "edl-robust": "for any number of classes, for labels of which many are wrong",
    "edl-paper": "the paper's plain recipe, for 10 classes only",
}


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
    with resources.as_file(resources.files("edl_jax.losses") / f"{name}.safetensors") as path:
        return EvolvedLoss.load(path)
