"""Stage 5: evolve a population of loss networks on synthetic pairs."""

from edl_jax.evolution.config import PretrainConfig, SlopeConfig
from edl_jax.evolution.engine import Evolution, make_evolution, make_run, run_keys

__all__ = ["Evolution", "PretrainConfig", "SlopeConfig", "make_evolution", "make_run", "run_keys"]
