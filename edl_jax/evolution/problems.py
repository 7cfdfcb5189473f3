"""What is evolved, as evosax problems: a population of loss networks, and how good each is.

A solution is the state of a loss network. Problems are hashable, because evosax compiles a method
once for each problem: two that are equal share their programs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from evosax.problems.problem import State
from evosax.types import Fitness, Metrics, Population

from edl_jax.errors import ConfigError
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.loss_problem import ORDER, LossProblem
from edl_jax.evolution.sums import WeightedSum, static_self
from edl_jax.networks import LossNetwork
from edl_jax.objective import (
    apply_severity,
    draw_tasks,
    margin_violation,
    slope_violations,
    task_errors,
)
from edl_jax.pairs import Pairs, log_probabilities

PAIRS_AT_A_TIME = 4096  # evaluated together by a network, which bounds memory


class Batch(NamedTuple):
    """Pairs as a population sees them, in random order.

    Attributes:
      features: `[num_features, num_pairs]` float32.
      severities: `[num_pairs]` float32.
    """

    features: jax.Array
    severities: jax.Array


@dataclasses.dataclass(frozen=True)
class RankingProblem(LossProblem):
    """How far losses miss the margins that severity asks for (docs/method.md, section 3).

    Fitness is 0 where every margin is kept, and 1 for a constant loss, on fresh pairs of the key:
    the same for all solutions.
    """

    spares_key = True

    @static_self
    def eval(
        self, key: jax.Array, solutions: Population, state: State
    ) -> tuple[Fitness, State, Metrics]:
        """The violations, `[population]`; see `evosax.problems.Problem`."""
        _, key_pairs, key_order, _, _ = jax.random.split(key, 5)
        batch = self.batch(key_order, self.pairs(key_pairs))
        return self.violations(solutions, batch), _counted(state), {}

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
        return self.in_blocks(
            lambda network: self._violation(_losses(network, batch.features), batch.severities),
            solutions,
        )

    def check(self, key: jax.Array) -> None:
        """Refuse a severity and margin with which no pair asks for a margin of another.

        Raises:
          ConfigError: if none does: all losses would be equally good.
          InputError: as `margin_violation`.
        """
        severities = self.batch(key, self.pairs(key)).severities
        # Where anything is asked for, a constant loss misses all of it.
        if self._violation(jnp.zeros_like(severities), severities) == 0:
            raise ConfigError(
                f"PretrainConfig.severity is {self.config.severity!r}, with which "
                f"{severities.size} pairs ask for no margin ({self.config.margin!r}) of one "
                "another, so that nothing is ranked; expected a severity that tells pairs apart."
            )

    @static_self
    def _violation(self, losses: jax.Array, severities: jax.Array) -> jax.Array:
        return margin_violation(
            losses, severities, margin=self.margin, num_opponents=self.config.num_opponents
        )


@dataclasses.dataclass(frozen=True)
class SlopeProblem(LossProblem):
    """How far the slopes of losses are from one that trains well, on fresh pairs of the key.

    Fitness is the sum of `SlopeViolations` weighted by `config.slope`, the mean over the class
    counts.
    """

    @static_self
    def eval(
        self, key: jax.Array, solutions: Population, state: State
    ) -> tuple[Fitness, State, Metrics]:
        """The weighted violations, `[population]`, as metric `slope_violation` too."""
        weights = jnp.asarray([self.config.slope.weights()], jnp.float32)
        each = -(-self.config.slope.pairs // len(self.config.class_counts))
        pairs_of_counts = [jax.tree.map(lambda x: x[:each], pairs) for pairs in self.pairs(key)]

        def violation(network: LossNetwork) -> jax.Array:
            def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
                return network(jax.nn.log_softmax(logits), labels)

            found = [slope_violations(loss, pairs, self.severity) for pairs in pairs_of_counts]
            return jnp.mean(jnp.sum(jnp.asarray(found) * weights, axis=-1))

        fitness = self.in_blocks(violation, solutions)
        return fitness, _counted(state), {"slope_violation": fitness}


@dataclasses.dataclass(frozen=True)
class TaskProblem(LossProblem):
    """How badly small classifiers learn fresh synthetic problems with losses (`config.tasks`).

    Fitness is the mean error over the problems, at the learning rate that suits a loss best.
    """

    @static_self
    def eval(
        self, key: jax.Array, solutions: Population, state: State
    ) -> tuple[Fitness, State, Metrics]:
        """The errors, `[population]`, as metric `task_error` too."""
        tasks = draw_tasks(key, self.config.tasks, self.config.mixture)

        def error(network: LossNetwork) -> jax.Array:
            return jnp.min(jnp.mean(task_errors(network, tasks, self.config.tasks), axis=-1))

        fitness = self.in_blocks(error, solutions)
        return fitness, _counted(state), {"task_error": fitness}


def problem_of(config: PretrainConfig) -> RankingProblem | WeightedSum:
    """What a configuration asks for: the ranking objective, and the terms that have a weight."""
    problem = RankingProblem(config)
    if config.task_weight:
        problem += config.task_weight * TaskProblem(config)
    if any(config.slope.weights()):
        problem += SlopeProblem(config)
    return problem


def _losses(network: LossNetwork, features: jax.Array) -> jax.Array:
    num_features, num_pairs = features.shape
    if num_pairs <= PAIRS_AT_A_TIME:
        return network.from_features(features)
    num_blocks = -(-num_pairs // PAIRS_AT_A_TIME)
    padded = jnp.pad(features, ((0, 0), (0, num_blocks * PAIRS_AT_A_TIME - num_pairs)))
    blocks = padded.reshape(num_features, num_blocks, PAIRS_AT_A_TIME).swapaxes(0, 1)
    return jax.lax.map(network.from_features, blocks).reshape(-1)[:num_pairs]


def _counted(state: State) -> State:
    return state.replace(counter=state.counter + 1)  # pyright: ignore[reportAttributeAccessIssue]
