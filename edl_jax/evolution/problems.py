"""What is evolved, as evosax problems: a population of loss networks, and how good each is.

A solution is the state of a loss network. Problems are hashable, because evosax compiles a method
once for each problem: two that are equal share their programs.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from evosax.problems.problem import State
from evosax.types import Fitness, Metrics, Population, Solution
from flax import nnx

from edl_jax.checked import config_or_default
from edl_jax.errors import ConfigError
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.sums import Summand, WeightedSum, static_self
from edl_jax.losses import EvolvedLoss, calibrated
from edl_jax.networks import LossNetwork
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    apply_severity,
    draw_tasks,
    margin_violation,
    slope_violations,
    task_errors,
)
from edl_jax.objective.severity import Margin, Severity
from edl_jax.pairs import Pairs, log_probabilities, sample_pairs

PAIRS_AT_A_TIME = 4096  # evaluated together by a network, which bounds memory

# Several functions may be given one key: each first folds in a number of its own, so that none
# draws what another does. `pairs` folds in the index of a class count, which is smaller.
ORDER, HELD_OUT, TASKS = range(2**31, 2**31 + 3)


class Batch(NamedTuple):
    """Pairs as a population sees them, in random order.

    Attributes:
      features: `[num_features, num_pairs]` float32.
      severities: `[num_pairs]` float32.
    """

    features: jax.Array
    severities: jax.Array


@dataclasses.dataclass(frozen=True)
class LossProblem(Summand):
    """What problems of loss networks share: the networks, and the pairs.

    Attributes:
      config: which network, pairs and objective; the defaults if None.
    """

    config: PretrainConfig = None  # pyright: ignore[reportAssignmentType]
    # What the configuration's names stand for: they may be registered anew.
    severity: Severity = dataclasses.field(init=False, repr=False)
    margin: Margin = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        config = config_or_default(self.config, PretrainConfig)
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "severity", SEVERITIES[config.severity])
        object.__setattr__(self, "margin", MARGINS[config.margin])

    def network(self, solution: Solution) -> LossNetwork:
        """The loss network of a solution."""
        return nnx.merge(self.config.architecture().abstract()[0], solution)

    def loss(self, solution: Solution, key: jax.Array | None = None) -> EvolvedLoss:
        """The frozen loss of a solution, for `train` and to save.

        Args:
          solution: the state of a loss network.
          key: draws `held_out_pairs` pairs to calibrate on; without, the loss is as evolved.

        Raises:
          InputError: if the loss is flat on the pairs.
        """
        loss = EvolvedLoss(
            params=nnx.to_pure_dict(solution),
            scale=jnp.ones((), jnp.float32),
            architecture=self.config.architecture(),
        )
        return loss if key is None else calibrated(loss, self.held_out_pairs(key))

    @static_self
    def sample(self, key: jax.Array) -> Solution:
        """The state of a fresh network."""
        return self.config.architecture().initial_state(key)

    @static_self
    def pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """A generation's pairs, one set for each class count."""
        counts = self.config.class_counts
        each, extra = divmod(self.config.pairs_per_generation, len(counts))
        return tuple(
            sample_pairs(
                jax.random.fold_in(key, index),
                each + (index < extra),
                num_classes,
                mixture=self.config.mixture,
            )
            for index, num_classes in enumerate(counts)
        )

    def held_out_pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """At least `held_out_pairs` pairs, drawn a generation's worth at a time by one program."""
        draws = -(-self.config.held_out_pairs // self.config.pairs_per_generation)
        key = jax.random.fold_in(key, HELD_OUT)
        parts = [self.pairs(jax.random.fold_in(key, index)) for index in range(draws)]
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

    def in_blocks(
        self, function: Callable[[LossNetwork], jax.Array], solutions: Population
    ) -> Fitness:
        """A function of every network, `networks_at_a_time` of them together, `[population]`."""
        size = jax.tree.leaves(solutions)[0].shape[0]
        blocks = -(-size // self.config.networks_at_a_time)
        each = -(-size // blocks)
        rows = jnp.minimum(jnp.arange(blocks * each), size - 1).reshape(blocks, each)
        whole = jax.tree.map(lambda x: x[rows], solutions)
        of_block = jax.vmap(lambda solution: function(self.network(solution)))
        return jax.lax.map(of_block, whole).reshape(-1)[:size]


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
