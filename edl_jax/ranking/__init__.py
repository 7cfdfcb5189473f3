"""Stage 3: the ranking-consistency objective and its metrics (docs/method.md, section 3)."""

from edl_jax.ranking.gradient import (
    GradientSample,
    gradient_metrics,
    gradient_norms,
    logit_gradients,
)
from edl_jax.ranking.metrics import rank_metrics
from edl_jax.ranking.objective import margin_violation
from edl_jax.ranking.severity import MARGINS, SEVERITIES, apply_severity
from edl_jax.ranking.slope import SlopeViolations, slope_violations

__all__ = [
    "MARGINS",
    "SEVERITIES",
    "GradientSample",
    "SlopeViolations",
    "apply_severity",
    "gradient_metrics",
    "gradient_norms",
    "logit_gradients",
    "margin_violation",
    "rank_metrics",
    "slope_violations",
]
