"""What fitness holds beside the ranking objective: a loss's slope, and how it is to train with."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.scoring import in_blocks
from edl_jax.objective import SEVERITIES, draw_tasks, slope_violations, task_errors
from edl_jax.pairs import Pairs

Score = Callable[[nnx.State, jax.Array], jax.Array]


class Term(NamedTuple):
    """A term of the fitness.

    Attributes:
      weight: what its values are multiplied by.
      score: `(population, key) -> values`, `[population_size]`, lower is better. The key decides on
        what the networks are tried: all on the same.
    """

    weight: float
    score: Score


def make_terms(
    config: PretrainConfig,
    graphdef: nnx.GraphDef,
    sample: Callable[[jax.Array], tuple[Pairs, ...]],
) -> dict[str, Term]:
    """The terms that have a weight, by the name they are logged by; none with the defaults.

    Args:
      config: the run's configuration.
      graphdef: the loss network's graph definition.
      sample: draws a generation's pairs, one set for each class count.
    """
    terms = {}
    if config.task_weight:
        terms["task_error"] = Term(config.task_weight, _tasks(config, graphdef))
    if any(config.slope.weights()):
        terms["slope_violation"] = Term(1.0, _slope(config, graphdef, sample))
    return terms


def _tasks(config: PretrainConfig, graphdef: nnx.GraphDef) -> Score:
    """Mean error over the tasks, at the learning rate that suits a network best."""

    def score(population: nnx.State, key: jax.Array) -> jax.Array:
        tasks = draw_tasks(key, config.tasks, config.mixture)

        def error(solution: nnx.State) -> jax.Array:
            errors = task_errors(nnx.merge(graphdef, solution), tasks, config.tasks)
            return jnp.min(jnp.mean(errors, axis=-1))

        return in_blocks(error, population, config.networks_at_a_time)

    return score


def _slope(
    config: PretrainConfig,
    graphdef: nnx.GraphDef,
    sample: Callable[[jax.Array], tuple[Pairs, ...]],
) -> Score:
    """Weighted violations, the mean over the class counts."""
    severity = SEVERITIES[config.severity]
    weights = jnp.asarray([config.slope.weights()], jnp.float32)
    each = -(-config.slope.pairs // len(config.class_counts))

    def score(population: nnx.State, key: jax.Array) -> jax.Array:
        pairs_of_counts = [jax.tree.map(lambda x: x[:each], pairs) for pairs in sample(key)]

        def violation(solution: nnx.State) -> jax.Array:
            network = nnx.merge(graphdef, solution)
            found = [
                slope_violations(lambda x, y: network(jax.nn.log_softmax(x), y), pairs, severity)
                for pairs in pairs_of_counts
            ]
            return jnp.mean(jnp.sum(jnp.asarray(found) * weights, axis=-1))

        return in_blocks(violation, population, config.networks_at_a_time)

    return score
