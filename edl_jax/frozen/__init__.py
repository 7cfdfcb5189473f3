"""Stage 6: the evolved loss, frozen: a callable on logits like those of `optax.losses`."""

from edl_jax.frozen.calibration import calibrated
from edl_jax.frozen.evolved_loss import EvolvedLoss, Provenance
from edl_jax.frozen.pretrained import PRETRAINED, load_pretrained

__all__ = ["PRETRAINED", "EvolvedLoss", "Provenance", "calibrated", "load_pretrained"]
