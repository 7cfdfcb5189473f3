"""What a loss and its gradient do on pairs (docs/method.md, section 3)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.objective.ranking import by_regime, rank_metrics
from edl_jax.objective.severity import Margin, Severity, apply_severity
from edl_jax.pairs import Pairs, log_probabilities

# From logits `[num_pairs, num_classes]` and labels `[num_pairs]` to losses `[num_pairs]`.
LogitLoss = Callable[[jax.Array, jax.Array], jax.Array]


def measure(
    loss: LogitLoss,
    pairs: Pairs | Sequence[Pairs],
    *,
    severity: Severity,
    margin: Margin,
    scale: float | jax.Array = 1.0,
) -> dict[str, float]:
    """Ranking and gradient metrics of a loss, over all pairs and by regime.

    Args:
      loss: a `LogitLoss`. A pytree, such as an `EvolvedLoss`, compiles once for all parameters.
      pairs: in random order: of one class count, or a set for each of several.
      severity: one of `SEVERITIES`, or any such function.
      margin: one of `MARGINS`, or any such function.
      scale: what the gradient is multiplied by. Margins are those of an evolved loss before its
        calibration, so measure `loss.replace(scale=1.0)` with `scale=loss.scale`.

    Returns:
      Nothing where a loss is not finite; else what `rank_metrics` gives, and `descent_rate`, the
      share of pairs where an infinitesimal descent step on the logits lowers the severity, and
      `gradient_ratio`, the mean norm of the logit gradient over that of cross-entropy. Both also as
      `NAME/REGIME`, and the ratio as `gradient_ratio/0.0-0.1` to `gradient_ratio/0.9-1.0`, by the
      true class's probability. Pairs without a cross-entropy gradient count in neither.
    """
    if jax.tree_util.all_leaves([loss]):  # a function: nothing of it changes
        loss = jax.tree_util.Partial(loss)
    sets = [pairs] if isinstance(pairs, Pairs) else pairs
    parts = [jax.device_get(responses(loss, each, severity)) for each in sets]
    losses, severities, sample = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    if not np.isfinite(losses).all():
        return {}
    # Sets come one after the other, and `rank_metrics` may use the first pairs alone: mix them.
    order = np.random.default_rng(0).permutation(losses.size)
    ranks = rank_metrics(losses[order], severities[order], sample.regimes[order], margin=margin)
    return {**ranks, **gradient_metrics(sample._replace(norms=sample.norms * np.asarray(scale)))}


class GradientSample(NamedTuple):
    """A loss's logit gradient on some pairs, `[num_pairs]` each."""

    lowers: jax.Array  # whether an infinitesimal descent step lowers the severity
    norms: jax.Array  # Euclidean norm of the gradient
    reference_norms: jax.Array  # the same of cross-entropy's
    true_probabilities: jax.Array
    regimes: jax.Array


@partial(jax.jit, static_argnames="severity")
def responses(
    loss: LogitLoss, pairs: Pairs, severity: Severity
) -> tuple[jax.Array, jax.Array, GradientSample]:
    """Losses, severities, `[num_pairs]`, and logit gradients: the one program that measures."""
    log_p = log_probabilities(pairs.probabilities)
    severities = apply_severity(severity, log_p, pairs.labels)
    return loss(log_p, pairs.labels), severities, logit_gradients(loss, pairs, severity)


def gradients(loss: LogitLoss, pairs: Pairs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses `[num_pairs]`; by the logits, their gradient and cross-entropy's, `p - onehot(y)`."""
    logits = log_probabilities(pairs.probabilities)
    losses, pullback = jax.vjp(lambda x: loss(x, pairs.labels), logits)
    one_hot = jax.nn.one_hot(pairs.labels, logits.shape[-1], dtype=logits.dtype)
    return losses, pullback(jnp.ones_like(losses))[0], pairs.probabilities - one_hot


def logit_gradients(loss: LogitLoss, pairs: Pairs, severity: Severity) -> GradientSample:
    """Measure a loss's gradient with respect to the logits, pair by pair."""
    _, gradient, reference = gradients(loss, pairs)

    def severities(logits: jax.Array) -> jax.Array:
        return apply_severity(severity, jax.nn.log_softmax(logits), pairs.labels)

    logits = log_probabilities(pairs.probabilities)
    _, change = jax.jvp(severities, (logits,), (-gradient,))
    own = jnp.take_along_axis(pairs.probabilities, pairs.labels[:, None], axis=-1)[:, 0]
    norms, references = (jnp.linalg.norm(x, axis=-1) for x in (gradient, reference))
    return GradientSample(change < 0, norms, references, own, pairs.regimes)


def gradient_metrics(sample: GradientSample) -> dict[str, float]:
    """The means over the pairs that `measure` gives; on the host."""
    lowers, norms, reference, own, regimes = map(np.asarray, sample)
    counts = reference > 0
    groups = {suffix: counts & mine for suffix, mine in by_regime(regimes).items()}
    metrics = {f"descent_rate{x}": float(lowers[y].mean()) for x, y in groups.items() if y.any()}
    bins = np.clip((own * 10).astype(int), 0, 9)
    groups |= {f"/{x / 10:.1f}-{(x + 1) / 10:.1f}": counts & (bins == x) for x in range(10)}
    for suffix, mine in groups.items():
        if total := reference[mine].sum(dtype=np.float64):
            metrics[f"gradient_ratio{suffix}"] = float(norms[mine].sum(dtype=np.float64) / total)
    return metrics
