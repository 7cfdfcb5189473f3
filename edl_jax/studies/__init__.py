"""Stage 8: studies over finished parts: comparisons, plots and the demonstration."""

from edl_jax.studies.comparison import CompareResult, compare
from edl_jax.studies.comparison_config import CompareConfig
from edl_jax.studies.demonstration import DemoConfig, demo
from edl_jax.studies.inspection import InspectConfig, inspect

__all__ = [
    "CompareConfig",
    "CompareResult",
    "DemoConfig",
    "InspectConfig",
    "compare",
    "demo",
    "inspect",
]
