"""The names that the package offers; `__init__.py` reads them here, and so do type checkers."""

from edl_jax.data import DATASETS as DATASETS, ArraySource as ArraySource, DataConfig as DataConfig
from edl_jax.errors import EDLError as EDLError
from edl_jax.evolution import PretrainConfig as PretrainConfig
from edl_jax.evolution.evolve import evolve as evolve
from edl_jax.evolution.pretraining import PretrainResult as PretrainResult, pretrain as pretrain
from edl_jax.evolution.problems import RankingProblem as RankingProblem, TaskProblem as TaskProblem
from edl_jax.losses import (
    LOSSES as LOSSES,
    EvolvedLoss as EvolvedLoss,
    LossMethod as LossMethod,
    Student as Student,
    load_pretrained as load_pretrained,
)
from edl_jax.methods import METHODS as METHODS
from edl_jax.models import MODELS as MODELS
from edl_jax.networks import (
    ClassAgnosticNetwork as ClassAgnosticNetwork,
    PairNetwork as PairNetwork,
)
from edl_jax.objective import MARGINS as MARGINS, SEVERITIES as SEVERITIES
from edl_jax.pairs import Mixture as Mixture, Pairs as Pairs, sample_pairs as sample_pairs
from edl_jax.strategies import (
    MUTATIONS as MUTATIONS,
    STRATEGIES as STRATEGIES,
    ChaoticES as ChaoticES,
    ChaoticSNES as ChaoticSNES,
    StrategyConfig as StrategyConfig,
)
from edl_jax.training import (
    OptimizerConfig as OptimizerConfig,
    TrainConfig as TrainConfig,
    TrainResult as TrainResult,
    train as train,
)
