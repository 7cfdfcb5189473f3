"""Baselines: classification losses by hand, and evolved ones of others, to compare with."""

# Each registers its losses, in the order in which they are to be listed.
# isort: off
from edl_jax.baselines import cross_entropies as cross_entropies
from edl_jax.baselines import robust as robust
from edl_jax.baselines import normalised as normalised
from edl_jax.baselines import tempered as tempered
from edl_jax.baselines import hinges as hinges
from edl_jax.baselines import margins as margins
from edl_jax.baselines import adaptive as adaptive
from edl_jax.baselines import evolved as evolved

# isort: on
from edl_jax.baselines.common import LOSSES
from edl_jax.baselines.margins import COSINE_LOSSES, MARGIN_LOSSES

LOSSES.protect()

__all__ = ["COSINE_LOSSES", "LOSSES", "MARGIN_LOSSES"]
