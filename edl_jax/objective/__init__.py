"""Stage 3: the ranking-consistency objective, its metrics, and synthetic tasks (docs/method.md)."""

from edl_jax.objective.measure import measure
from edl_jax.objective.ranking import margin_violation, rank_metrics
from edl_jax.objective.severity import MARGINS, SEVERITIES, apply_severity
from edl_jax.objective.tasks import TaskConfig, draw_tasks, task_errors
from edl_jax.registry import load_parts

__all__ = [
    "MARGINS",
    "SEVERITIES",
    "TaskConfig",
    "apply_severity",
    "draw_tasks",
    "margin_violation",
    "measure",
    "rank_metrics",
    "task_errors",
]
load_parts(__name__, SEVERITIES, MARGINS)
