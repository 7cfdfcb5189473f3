"""Stage 8: studies over finished parts: comparisons, plots and the demonstration."""

from edl_jax.studies.compare import CompareConfig, CompareResult, compare
from edl_jax.studies.demo import DemoConfig, demo

__all__ = ["CompareConfig", "CompareResult", "DemoConfig", "compare", "demo"]
