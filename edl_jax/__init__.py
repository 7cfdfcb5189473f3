"""Evolutionary Dynamic Loss in JAX: evolve a classification loss, then train with it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edl_jax.data import DATASETS, ArraySource, DataConfig
    from edl_jax.errors import EDLError
    from edl_jax.evolution import PretrainConfig
    from edl_jax.evolution.evolve import evolve
    from edl_jax.evolution.pretraining import PretrainResult, pretrain
    from edl_jax.evolution.problems import RankingProblem, TaskProblem
    from edl_jax.losses import LOSSES, EvolvedLoss, LossMethod, Student, load_pretrained
    from edl_jax.networks import ClassAgnosticNetwork, PairNetwork
    from edl_jax.objective import MARGINS, SEVERITIES
    from edl_jax.pairs import Mixture, Pairs, sample_pairs
    from edl_jax.strategies import MUTATIONS, STRATEGIES, ChaoticES, ChaoticSNES, StrategyConfig
    from edl_jax.training import OptimizerConfig, TrainConfig, TrainResult, train

# Loaded when first asked for: importing evosax starts JAX's backend, and several processes must
# have joined (`edl_jax.runs.joining`) before that.
_NAMES = {
    "data": "DATASETS ArraySource DataConfig",
    "errors": "EDLError",
    "evolution": "PretrainConfig",
    "evolution.evolve": "evolve",
    "evolution.pretraining": "PretrainResult pretrain",
    "evolution.problems": "RankingProblem TaskProblem",
    "losses": "LOSSES EvolvedLoss LossMethod Student load_pretrained",
    "networks": "ClassAgnosticNetwork PairNetwork",
    "objective": "MARGINS SEVERITIES",
    "pairs": "Mixture Pairs sample_pairs",
    "strategies": "MUTATIONS STRATEGIES ChaoticES ChaoticSNES StrategyConfig",
    "training": "OptimizerConfig TrainConfig TrainResult train",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

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
