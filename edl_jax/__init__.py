"""Evolutionary Dynamic Loss in JAX: evolve a classification loss, then train with it."""

from edl_jax.errors import EDLError
from edl_jax.evolution import PretrainConfig
from edl_jax.frozen import EvolvedLoss, load_pretrained
from edl_jax.network import ClassAgnosticNetwork, PairNetwork
from edl_jax.pairs import Mixture, Pairs, sample_pairs
from edl_jax.pretraining import PretrainResult, pretrain
from edl_jax.strategy import ChaoticES
from edl_jax.training import TrainConfig, TrainResult, train

__all__ = [
    "ChaoticES",
    "ClassAgnosticNetwork",
    "EDLError",
    "EvolvedLoss",
    "Mixture",
    "PairNetwork",
    "Pairs",
    "PretrainConfig",
    "PretrainResult",
    "TrainConfig",
    "TrainResult",
    "load_pretrained",
    "pretrain",
    "sample_pairs",
    "train",
]
