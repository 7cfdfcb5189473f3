"""Stage 8: studies over finished parts: comparisons, plots and the demonstration."""

from edl_jax.studies.comparison import CompareConfig, CompareResult, compare
from edl_jax.studies.demonstration import DemoConfig, demo
from edl_jax.studies.transfer import TransferConfig, transfer

__all__ = [
    "CompareConfig",
    "CompareResult",
    "DemoConfig",
    "TransferConfig",
    "compare",
    "demo",
    "transfer",
]
