"""What is evolved, as evosax problems: a population of loss networks, and how good each is.

A solution is the state of a loss network. Problems are hashable, because evosax compiles a method
once for each problem: two that are equal share their programs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from evosax.types import Fitness, Population

from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.loss_problem import ORDER, LossProblem, WeightedSum, static_self
from edl_jax.networks import LossNetwork
from edl_jax.objective import (
    apply_severity,
    draw_tasks,
    margin_violation,
    slope_violations,
    task_errors,
)
from edl_jax.pairs import Pairs, log_probabilities


class Batch(NamedTuple):
    """Pairs as a population sees them, in random order."""

    features: jax.Array  # `[num_features, num_pairs]` float32
    severities: jax.Array  # `[num_pairs]` float32


class RankingProblem(LossProblem):
    """How far losses miss the margins that severity asks for (docs/method.md, section 3).

    Fitness is 0 where every margin is kept, and 1 for a constant loss, on fresh pairs of the key:
    the same for all solutions.
    """

    spares_key = True

    def scores(self, key: jax.Array) -> Callable[[LossNetwork], jax.Array]:
        """The violations on fresh pairs."""
        _, key_pairs, key_order, _, _ = jax.random.split(key, 5)
        return partial(self._violation, batch=self.batch(key_order, self.pairs(key_pairs)))

    @static_self
    def batch(self, key: jax.Array, pairs_of_counts: tuple[Pairs, ...]) -> Batch:
        """Pairs as the population sees them, in an order that the key draws."""
        network = self.network(self.config.architecture().abstract()[1])  # no parameters are used
        parts = []
        for pairs in pairs_of_counts:
            log_p = log_probabilities(pairs.probabilities)
            severities = apply_severity(self.severity, log_p, pairs.labels)
            parts.append(Batch(network.features(log_p, pairs.labels), severities))
        whole = Batch(*(jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))
        # Class counts come in blocks, and the objective takes opponents by position: mix them.
        order = jax.random.permutation(jax.random.fold_in(key, ORDER), whole.severities.size)
        return jax.tree.map(lambda x: x[..., order], whole)

    @static_self
    def violations(self, solutions: Population, batch: Batch) -> Fitness:
        """The fitness of solutions on given pairs, `[population]`.

        Besides the population, the pairs and a block of networks' losses, it needs memory for
        `networks_at_a_time` networks' hidden layers on 4,096 pairs: 8 MiB with the defaults.
        """
        return self.of_every(partial(self._violation, batch=batch), solutions)

    def _violation(self, network: LossNetwork, batch: Batch) -> jax.Array:
        losses, num_opponents = network.from_features(batch.features), self.config.num_opponents
        return margin_violation(
            losses, batch.severities, margin=self.margin, num_opponents=num_opponents
        )


class SlopeProblem(LossProblem):
    """How far the slopes of losses are from one that trains well, on fresh pairs of the key.

    Fitness is the sum of `SlopeViolations` weighted by `config.slope`, the mean over the class
    counts.
    """

    metric = "slope_violation"

    def scores(self, key: jax.Array) -> Callable[[LossNetwork], jax.Array]:
        """The weighted violations."""
        weights = jnp.asarray([self.config.slope.weights()], jnp.float32)
        each = -(-self.config.slope.pairs // len(self.config.class_counts))
        pairs_of_counts = [jax.tree.map(lambda x: x[:each], pairs) for pairs in self.pairs(key)]

        def violation(network: LossNetwork) -> jax.Array:
            def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
                return network(jax.nn.log_softmax(logits), labels)

            found = [slope_violations(loss, pairs, self.severity) for pairs in pairs_of_counts]
            return jnp.mean(jnp.sum(jnp.asarray(found) * weights, axis=-1))

        return violation


class TaskProblem(LossProblem):
    """How badly small classifiers learn fresh synthetic problems with losses (`config.tasks`).

    Fitness is the mean error over the problems, at the learning rate that suits a loss best.
    """

    metric = "task_error"

    def scores(self, key: jax.Array) -> Callable[[LossNetwork], jax.Array]:
        """The errors."""
        tasks = draw_tasks(key, self.config.tasks, self.config.mixture)
        return lambda network: jnp.min(
            jnp.mean(task_errors(network, tasks, self.config.tasks), axis=-1)
        )


def problem_of(config: PretrainConfig) -> RankingProblem | WeightedSum:
    """What a configuration asks for: the ranking objective, and the terms that have a weight."""
    problem = RankingProblem(config)
    if config.task_weight:
        problem += config.task_weight * TaskProblem(config)
    if any(config.slope.weights()):
        problem += SlopeProblem(config)
    return problem
