"""Evolution: problems, the generation, and the pretraining of a loss."""

from edl_jax.evolution.config import PretrainConfig, SlopeConfig

__all__ = ["PretrainConfig", "SlopeConfig"]
