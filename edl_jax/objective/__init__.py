"""Stage 3: the ranking-consistency objective, its metrics, and synthetic tasks (docs/method.md)."""

from edl_jax.objective.gradient import (
    GradientSample,
    gradient_metrics,
    gradient_norms,
    logit_gradients,
)
from edl_jax.objective.hinge import margin_violation
from edl_jax.objective.metrics import rank_metrics
from edl_jax.objective.severity import MARGINS, SEVERITIES, apply_severity
from edl_jax.objective.slope import SlopeViolations, slope_violations
from edl_jax.objective.task_config import TaskConfig
from edl_jax.objective.task_learner import Tasks, draw_tasks, task_errors

__all__ = [
    "MARGINS",
    "SEVERITIES",
    "GradientSample",
    "SlopeViolations",
    "TaskConfig",
    "Tasks",
    "apply_severity",
    "draw_tasks",
    "gradient_metrics",
    "gradient_norms",
    "logit_gradients",
    "margin_violation",
    "rank_metrics",
    "slope_violations",
    "task_errors",
]
