"""Classification losses: formulas of a logit and a label, and evolved losses, frozen."""

# Each registers its losses, in the order in which they are to be listed.
# isort: off
from edl_jax.losses import cross_entropies as cross_entropies
from edl_jax.losses import robust as robust
from edl_jax.losses import normalised as normalised
from edl_jax.losses import tempered as tempered
from edl_jax.losses import hinges as hinges
from edl_jax.losses import margins as margins
from edl_jax.losses import adaptive as adaptive
from edl_jax.losses import discovered as discovered

# isort: on
from edl_jax.losses.calibration import calibrated
from edl_jax.losses.evolved_loss import EvolvedLoss, Provenance
from edl_jax.losses.formula import LOSSES
from edl_jax.losses.margins import COSINE_LOSSES, MARGIN_LOSSES
from edl_jax.losses.pretrained import PRETRAINED, load_pretrained

LOSSES.protect()

__all__ = [
    "COSINE_LOSSES",
    "LOSSES",
    "MARGIN_LOSSES",
    "PRETRAINED",
    "EvolvedLoss",
    "Provenance",
    "calibrated",
    "load_pretrained",
]
