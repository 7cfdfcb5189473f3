"""The one place where a loss is measured on pairs (docs/method.md, section 3)."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from edl_jax.objective.gradient import GradientSample, LogitLoss, gradient_metrics, logit_gradients
from edl_jax.objective.ranking import rank_metrics
from edl_jax.objective.severity import Margin, Severity, apply_severity
from edl_jax.pairs import Pairs, log_probabilities


def measure(
    loss: LogitLoss,
    pairs: Pairs | Sequence[Pairs],
    *,
    severity: Severity,
    margin: Margin,
    scale: float | jax.Array = 1.0,
) -> dict[str, float]:
    """Ranking and gradient metrics of a loss, over all pairs and by regime.

    A loss that is a pytree, such as an `EvolvedLoss`, compiles once for all its parameters.

    Args:
      loss: from logits `[num_pairs, num_classes]` and labels `[num_pairs]` to losses,
        `[num_pairs]`.
      pairs: the pairs to measure on, in random order: of one class count, or a set for each of
        several.
      severity: one of `SEVERITIES`, or any such function.
      margin: one of `MARGINS`, or any such function.
      scale: what the loss is multiplied by where its gradient is measured. Margins are those of an
        evolved loss before its calibration, so measure `loss.replace(scale=1.0)` with
        `scale=loss.scale`.

    Returns:
      What `rank_metrics` and `gradient_metrics` give; nothing where a loss is not finite.

    Raises:
      InputError: if the severity does not give one value for each pair.
    """
    if jax.tree_util.all_leaves([loss]):  # a function: nothing of it changes
        loss = jax.tree_util.Partial(loss)
    sets = [pairs] if isinstance(pairs, Pairs) else pairs
    parts = [jax.device_get(_responses(loss, each, severity)) for each in sets]
    losses, severities, sample = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    if not np.isfinite(losses).all():
        return {}
    # Sets come one after the other, and `rank_metrics` may use the first pairs alone: mix them.
    order = np.random.default_rng(0).permutation(losses.size)
    ranks = rank_metrics(losses[order], severities[order], sample.regimes[order], margin=margin)
    return {**ranks, **gradient_metrics(sample._replace(norms=sample.norms * np.asarray(scale)))}


@partial(jax.jit, static_argnames="severity")
def _responses(
    loss: LogitLoss, pairs: Pairs, severity: Severity
) -> tuple[jax.Array, jax.Array, GradientSample]:
    """Losses and severities, `[num_pairs]`, and logit gradients."""
    log_p = log_probabilities(pairs.probabilities)
    severities = apply_severity(severity, log_p, pairs.labels)
    return loss(log_p, pairs.labels), severities, logit_gradients(loss, pairs, severity)
