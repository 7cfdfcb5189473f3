"""Evolutionary Dynamic Loss in JAX: evolve a classification loss, then train with it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edl_jax.baselines import LOSSES
    from edl_jax.errors import EDLError
    from edl_jax.evolution import PretrainConfig
    from edl_jax.frozen import EvolvedLoss, load_pretrained
    from edl_jax.network import ClassAgnosticNetwork, PairNetwork
    from edl_jax.pairs import Mixture, Pairs, sample_pairs
    from edl_jax.pretraining import PretrainResult, pretrain
    from edl_jax.ranking import MARGINS, SEVERITIES
    from edl_jax.strategy import MUTATIONS, STRATEGIES, ChaoticES, ChaoticSNES
    from edl_jax.training import DATASETS, ArraySource, TrainConfig, TrainResult, train

# Loaded when first asked for: importing evosax starts JAX's backend, and several processes must
# have joined (`edl_jax.joining`) before that.
_HOMES = {
    "ArraySource": "training",
    "ChaoticES": "strategy",
    "ChaoticSNES": "strategy",
    "ClassAgnosticNetwork": "network",
    "DATASETS": "training",
    "EDLError": "errors",
    "EvolvedLoss": "frozen",
    "LOSSES": "baselines",
    "MARGINS": "ranking",
    "MUTATIONS": "strategy",
    "Mixture": "pairs",
    "PairNetwork": "network",
    "Pairs": "pairs",
    "PretrainConfig": "evolution",
    "PretrainResult": "pretraining",
    "SEVERITIES": "ranking",
    "STRATEGIES": "strategy",
    "TrainConfig": "training",
    "TrainResult": "training",
    "load_pretrained": "frozen",
    "pretrain": "pretraining",
    "sample_pairs": "pairs",
    "train": "training",
}

__all__ = [
    "DATASETS",
    "LOSSES",
    "MARGINS",
    "MUTATIONS",
    "SEVERITIES",
    "STRATEGIES",
    "ArraySource",
    "ChaoticES",
    "ChaoticSNES",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
