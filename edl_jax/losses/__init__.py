"""Classification losses: formulas of a logit and a label, evolved losses, and your own."""

from edl_jax.losses import formulas as formulas
from edl_jax.losses.by_name import PRETRAINED, load_pretrained
from edl_jax.losses.evolved_loss import EvolvedLoss, Provenance, calibrated
from edl_jax.losses.lift import LOSSES, formula, formula_of_weights
from edl_jax.losses.method import LossMethod, Student

LOSSES.protect(*PRETRAINED)

__all__ = [
    "LOSSES",
    "PRETRAINED",
    "EvolvedLoss",
    "LossMethod",
    "Provenance",
    "Student",
    "calibrated",
    "formula",
    "formula_of_weights",
    "load_pretrained",
]
