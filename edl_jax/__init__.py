"""Evolutionary Dynamic Loss in JAX: evolve a classification loss, then train with it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edl_jax.data import DATASETS, ArraySource, DataConfig
    from edl_jax.errors import EDLError
    from edl_jax.evolution import PretrainConfig
    from edl_jax.evolution.pretraining import PretrainResult, evolve, pretrain
    from edl_jax.evolution.problems import RankingProblem, TaskProblem
    from edl_jax.losses import LOSSES, EvolvedLoss, LossMethod, Student, load_pretrained
    from edl_jax.networks import ClassAgnosticNetwork, PairNetwork
    from edl_jax.objective import MARGINS, SEVERITIES
    from edl_jax.pairs import Mixture, Pairs, sample_pairs
    from edl_jax.strategies import MUTATIONS, STRATEGIES, ChaoticES, ChaoticSNES, StrategyConfig
    from edl_jax.training import OptimizerConfig, TrainConfig, TrainResult, train

# Loaded when first asked for: importing evosax starts JAX's backend, and several processes must
# have joined (`edl_jax.runs.joining`) before that.
_HOMES = {
    "ArraySource": "data",
    "ChaoticES": "strategies",
    "ChaoticSNES": "strategies",
    "ClassAgnosticNetwork": "networks",
    "DATASETS": "data",
    "DataConfig": "data",
    "EDLError": "errors",
    "EvolvedLoss": "losses",
    "LOSSES": "losses",
    "LossMethod": "losses",
    "MARGINS": "objective",
    "MUTATIONS": "strategies",
    "Mixture": "pairs",
    "OptimizerConfig": "training",
    "PairNetwork": "networks",
    "Pairs": "pairs",
    "PretrainConfig": "evolution",
    "PretrainResult": "evolution.pretraining",
    "RankingProblem": "evolution.problems",
    "SEVERITIES": "objective",
    "STRATEGIES": "strategies",
    "StrategyConfig": "strategies",
    "Student": "losses",
    "TaskProblem": "evolution.problems",
    "TrainConfig": "training",
    "TrainResult": "training",
    "evolve": "evolution.pretraining",
    "load_pretrained": "losses",
    "pretrain": "evolution.pretraining",
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
    "DataConfig",
    "EDLError",
    "EvolvedLoss",
    "LossMethod",
    "Mixture",
    "OptimizerConfig",
    "PairNetwork",
    "Pairs",
    "PretrainConfig",
    "PretrainResult",
    "RankingProblem",
    "StrategyConfig",
    "Student",
    "TaskProblem",
    "TrainConfig",
    "TrainResult",
    "evolve",
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
