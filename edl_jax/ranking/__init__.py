"""Stage 3: the semantics-free ranking-consistency objective and its metrics (design 1.3)."""

from edl_jax.ranking.metrics import gradient_metrics, rank_metrics
from edl_jax.ranking.objective import margin_violation
from edl_jax.ranking.severity import MARGINS, SEVERITIES

__all__ = ["MARGINS", "SEVERITIES", "gradient_metrics", "margin_violation", "rank_metrics"]
