"""Evolution: problems, the generation, and the pretraining of a loss."""

from edl_jax.evolution.config import PretrainConfig

__all__ = ["PretrainConfig"]
