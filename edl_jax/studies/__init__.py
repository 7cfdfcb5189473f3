"""Stage 8: studies over finished parts: comparisons, ablations, plots and the demonstration."""

from edl_jax.studies.ablation import AblateResult, ablate
from edl_jax.studies.ablation_config import AblateConfig
from edl_jax.studies.comparison import CompareResult, compare
from edl_jax.studies.comparison_config import CompareConfig
from edl_jax.studies.demonstration import DemoConfig, demo
from edl_jax.studies.inspection import InspectConfig, inspect
from edl_jax.studies.transfer import TransferConfig, transfer

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
