"""Studies: sweeps over configurations, and what they say of losses and of the evolution."""

from edl_jax.studies.ablate import AblateConfig, ablate
from edl_jax.studies.compare import CompareConfig, compare
from edl_jax.studies.coverage import CoverageConfig, coverage
from edl_jax.studies.demo import DemoConfig, demo
from edl_jax.studies.shape import CardConfig, card
from edl_jax.studies.sweep import sweep
from edl_jax.studies.tables import Study

__all__ = [
    "AblateConfig",
    "CardConfig",
    "CompareConfig",
    "CoverageConfig",
    "DemoConfig",
    "Study",
    "ablate",
    "card",
    "compare",
    "coverage",
    "demo",
    "sweep",
]
