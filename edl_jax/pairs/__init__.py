"""Stage 1: synthetic prediction-label pairs (docs/method.md, section 1)."""

from edl_jax.pairs.regimes import REGIMES, Mixture
from edl_jax.pairs.sampler import Pairs, log_probabilities, sample_pairs

__all__ = ["REGIMES", "Mixture", "Pairs", "log_probabilities", "sample_pairs"]
