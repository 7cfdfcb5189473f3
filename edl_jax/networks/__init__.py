"""Stage 2: networks from a prediction and a label to a loss (docs/method.md, section 2)."""

from edl_jax.networks.architecture import Architecture
from edl_jax.networks.class_agnostic import ClassAgnosticNetwork
from edl_jax.networks.fused import fused_from_features
from edl_jax.networks.loss_network import ACTIVATIONS, LossNetwork
from edl_jax.networks.pair import PairNetwork

__all__ = [
    "ACTIVATIONS",
    "Architecture",
    "ClassAgnosticNetwork",
    "LossNetwork",
    "PairNetwork",
    "fused_from_features",
]
