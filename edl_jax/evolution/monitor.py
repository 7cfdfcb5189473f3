"""Watch the leader on held-out pairs while a population evolves (docs/method.md, section 3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.errors import ConfigError
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.engine import Evolution
from edl_jax.evolution.scoring import Batch
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    GradientSample,
    gradient_metrics,
    logit_gradients,
    margin_violation,
    rank_metrics,
)
from edl_jax.pairs import Pairs


def check_ranks(config: PretrainConfig, severities: jax.Array) -> None:
    """Refuse a severity and margin that ask for nothing, where nothing else is asked for.

    Args:
      config: how to evolve.
      severities: of some pairs, `[n]`.

    Raises:
      ConfigError: if no two of them ask for a margin: all losses would be equally good.
      InputError: as `margin_violation`.
    """
    if config.task_weight or any(config.slope.weights()):
        return
    violation = jax.jit(margin_violation, static_argnames=("margin", "num_opponents"))
    missed = violation(
        jnp.zeros_like(severities),
        severities,
        margin=MARGINS[config.margin],
        num_opponents=config.num_opponents,
    )
    if missed == 0:  # where anything is asked for, a constant loss misses all of it
        raise ConfigError(
            f"PretrainConfig.severity is {config.severity!r}, with which {len(severities)} pairs "
            f"ask for no margin ({config.margin!r}) of one another, so that nothing is ranked; "
            "expected a severity that tells pairs apart."
        )


def make_monitor(
    config: PretrainConfig, evolution: Evolution, key: jax.Array
) -> Callable[[nnx.State], dict[str, float]]:
    """`(leader) -> metrics` by name, on a generation's worth of pairs that `key` draws once.

    The metrics are those of `rank_metrics` and `gradient_metrics`, over the pairs of all class
    counts together. The network is not calibrated yet, so of `gradient_ratio` only the course over
    the true class's probability means something.

    Raises:
      ConfigError: as `check_ranks`.
    """
    pairs_of_counts = jax.jit(evolution.sample)(key)
    batch = jax.jit(evolution.observe)(key, pairs_of_counts)
    check_ranks(config, batch.severities)
    severity, margin = SEVERITIES[config.severity], MARGINS[config.margin]

    @jax.jit
    def measure(
        leader: nnx.State, batch: Batch, pairs_of_counts: tuple[Pairs, ...]
    ) -> tuple[jax.Array, GradientSample]:
        network = nnx.merge(evolution.graphdef, leader)
        samples = [
            logit_gradients(lambda x, y: network(jax.nn.log_softmax(x), y), pairs, severity)
            for pairs in pairs_of_counts
        ]
        together = GradientSample(*(jnp.concatenate(x) for x in zip(*samples, strict=True)))
        return network.from_features(batch.features), together

    def monitor(leader: nnx.State) -> dict[str, float]:
        losses, sample = jax.device_get(measure(leader, batch, pairs_of_counts))
        ranks = rank_metrics(losses, batch.severities, batch.regimes, margin=margin)
        return {**ranks, **gradient_metrics(sample)}

    return monitor
