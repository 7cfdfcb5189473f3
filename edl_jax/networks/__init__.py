"""Stage 2: networks from a prediction and a label to a loss (docs/method.md, section 2)."""

from edl_jax.networks.architecture import Architecture, ClassAgnosticNetwork, PairNetwork
from edl_jax.networks.loss_network import ACTIVATIONS, LossNetwork

__all__ = ["ACTIVATIONS", "Architecture", "ClassAgnosticNetwork", "LossNetwork", "PairNetwork"]
