"""Stage 4: evolution strategies, chaotic and others, for evosax (docs/method.md, section 4).

`ChaoticES` and `ChaoticSNES` know nothing of losses: they work in any evosax loop.
"""

from edl_jax.registry import load_parts
from edl_jax.strategies.by_name import STRATEGIES, StrategyConfig, build_strategy
from edl_jax.strategies.chaotic_es import ChaoticES
from edl_jax.strategies.chaotic_snes import ChaoticSNES
from edl_jax.strategies.mutations import MUTATIONS, Mutation

__all__ = [
    "MUTATIONS",
    "STRATEGIES",
    "ChaoticES",
    "ChaoticSNES",
    "Mutation",
    "StrategyConfig",
    "build_strategy",
]
load_parts(__name__, MUTATIONS, STRATEGIES)
