"""What the transfer study measures: outputs of trainings beside synthetic pairs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy

from edl_jax.losses import EvolvedLoss
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    GradientSample,
    apply_severity,
    gradient_metrics,
    logit_gradients,
    rank_metrics,
)
from edl_jax.objective.severity import Severity
from edl_jax.pairs import REGIMES, Mixture, Pairs, log_probabilities, sample_pairs
from edl_jax.studies.transferability import distances

MIXTURE = "mixture"


def draw_references(
    num_pairs: int, num_classes: int, mixture: Mixture
) -> tuple[dict[str, Pairs], Pairs]:
    """Synthetic pairs to compare with, always the same.

    Returns:
      So many pairs of the mixture, as "mixture", and of each regime, by its name; and fresh ones of
      the mixture, a control.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    draw = functools.partial(sample_pairs, num_classes=num_classes)
    mixed, fresh = (jax.device_get(draw(key, num_pairs, mixture=mixture)) for key in keys[:2])
    # Equal weights: exactly as many of each regime.
    pool = jax.device_get(draw(keys[2], num_pairs * len(REGIMES)))
    regimes: dict[str, Any] = {
        name: jax.tree.map(lambda x, index=index: x[pool.regimes == index], pool)
        for index, name in enumerate(REGIMES)
    }
    return {MIXTURE: mixed, **regimes}, fresh


def compare_pairs(pairs: Pairs, reference: Pairs, bandwidth: float) -> dict[str, float]:
    """How far pairs are from synthetic ones.

    Args:
      pairs: outputs of trainings, say.
      reference: synthetic pairs of as many classes.
      bandwidth: kernel width of the discrepancy.

    Returns:
      `divergence/SUMMARY` (Jensen-Shannon, bits) and `divergence`, their mean over the summaries;
      `wasserstein/SUMMARY` (in the summary's unit); `mmd` (squared, unbiased); `accuracy` and `p`
      of the classifier two-sample test; `coverage`, the share of the pairs inside the reference's
      support. See `distances`.
    """
    num_classes = pairs.probabilities.shape[-1]
    x, y = distances.summarise_pairs(pairs), distances.summarise_pairs(reference)
    divergences = {
        name: distances.divergence(x[name], y[name], distances.edges_of(name, num_classes))
        for name in x
    }
    test = distances.two_sample_test(*(np.stack([*z.values()], axis=-1) for z in (x, y)))
    points, support = distances.coordinates(pairs), distances.coordinates(reference)
    return {
        "divergence": float(np.mean([*divergences.values()])),
        **{f"divergence/{name}": value for name, value in divergences.items()},
        **{
            f"wasserstein/{name}": float(scipy.stats.wasserstein_distance(x[name], y[name]))
            for name in x
        },
        "mmd": distances.mean_discrepancy(points, support, bandwidth),
        "accuracy": test.accuracy,
        "p": test.p,
        "coverage": float(distances.is_covered(points, support).mean()),
    }


def make_ranking(loss: EvolvedLoss) -> Callable[[Pairs], dict[str, float]]:
    """`(pairs) -> metrics`: those of `rank_metrics` and `gradient_metrics`.

    By the severity and the margin that the loss was evolved for. Ranking is that of the network, as
    when a loss is evolved: its scale is that of the margins. Gradients are the loss's own.
    """
    severity = SEVERITIES[loss.provenance.config.get("severity", "surprisal")]
    margin = MARGINS[loss.provenance.config.get("margin", "proportional")]

    def ranking(pairs: Pairs) -> dict[str, float]:
        losses, severities, sample = jax.device_get(_measure(loss, pairs, severity))
        ranks = rank_metrics(losses, severities, np.asarray(pairs.regimes), margin=margin)
        return {**ranks, **gradient_metrics(sample)}

    return ranking


@functools.partial(jax.jit, static_argnums=2)
def _measure(
    loss: EvolvedLoss, pairs: Pairs, severity: Severity
) -> tuple[jax.Array, jax.Array, GradientSample]:
    """Losses by the network, severities, and gradients of the loss."""
    log_p = log_probabilities(pairs.probabilities)
    severities = apply_severity(severity, log_p, pairs.labels)
    losses = loss.network()(log_p, pairs.labels)
    return losses, severities, logit_gradients(loss, pairs, severity)
