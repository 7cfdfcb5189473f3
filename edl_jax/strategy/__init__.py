"""Stage 4: the evolution strategy with chaotic mutation, for evosax (design 1.4).

Nothing here knows of losses: `ChaoticES` works in any evosax ask-evaluate-tell loop.
"""

from edl_jax.strategy.chaotic_es import ChaoticES
from edl_jax.strategy.mutations import MUTATIONS, Mutation

__all__ = ["MUTATIONS", "ChaoticES", "Mutation"]
