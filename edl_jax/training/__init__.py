"""Stage 7: train a Flax ResNet on real images, the loss being the only thing that changes."""

from edl_jax.training.config import TrainConfig
from edl_jax.training.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
