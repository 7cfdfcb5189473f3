"""Stage 8: studies over finished parts: comparisons, ablations, plots and the demonstration."""

from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.study import AblateResult, ablate
from edl_jax.studies.comparison.config import CompareConfig
from edl_jax.studies.comparison.study import CompareResult, compare
from edl_jax.studies.demonstration import DemoConfig, demo
from edl_jax.studies.inspection.study import InspectConfig, inspect
from edl_jax.studies.transferability.study import TransferConfig, transfer

__all__ = [
    "AblateConfig",
    "AblateResult",
    "CompareConfig",
    "CompareResult",
    "DemoConfig",
    "InspectConfig",
    "TransferConfig",
    "ablate",
    "compare",
    "demo",
    "inspect",
    "transfer",
]
