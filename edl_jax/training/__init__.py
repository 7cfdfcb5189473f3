"""Train a classifier on real images, the loss being the only thing that changes."""

from edl_jax.data.augmentation import Augmentation
from edl_jax.training.config import TrainConfig
from edl_jax.training.optimizers import OptimizerConfig
from edl_jax.training.training import TrainResult, make_trainer, train

__all__ = [
    "Augmentation",
    "OptimizerConfig",
    "TrainConfig",
    "TrainResult",
    "make_trainer",
    "train",
]
