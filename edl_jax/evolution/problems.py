"""What is evolved, as evosax problems: a population of loss networks, and how good each is.

A solution is the state of a loss network. Problems that are equal share their programs.
"""

import abc
import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from evosax.problems import Problem
from evosax.types import Fitness, Metrics, Population, Solution
from flax import nnx

from edl_jax import objective
from edl_jax.checked import config_or_default
from edl_jax.evolution.config import PretrainConfig
from edl_jax.losses import EvolvedLoss, calibrated
from edl_jax.networks import LossNetwork
from edl_jax.objective.severity import Margin, Severity
from edl_jax.objective.tasks import Tasks
from edl_jax.pairs import Pairs, log_probabilities, sample_pairs

Evaluated = tuple[Fitness, Any, Metrics]
static_self = partial(jax.jit, static_argnames=("self",))  # as evosax compiles methods

# `networks_at_a_time` are evaluated on so many pairs, fewer on more: 8 MiB of hidden layers.
PAIRS_AT_A_TIME = 4096
# Folded into a key that several functions share; `pairs` folds in smaller numbers, from 0 on.
ORDER, HELD_OUT, TASKS = range(2**31, 2**31 + 3)


class Summand(Problem):
    """A problem that can be weighted and added to others: `0.7 * one + 0.3 * other`."""

    def terms(self) -> tuple[tuple[float, Problem], ...]:
        """Weights and problems, of which this one is the sum."""
        return getattr(self, "parts", ((1.0, self),))

    def __rmul__(self, weight: float) -> "WeightedSum":
        """The problem with its fitness multiplied by a weight."""
        return WeightedSum(tuple((weight * own, problem) for own, problem in self.terms()))

    __mul__ = __rmul__

    def __add__(self, other: Problem) -> "WeightedSum":
        """The sum of this problem and any other of evosax."""
        added = other.terms() if isinstance(other, Summand) else ((1.0, other),)
        return WeightedSum(self.terms() + added)


@dataclasses.dataclass(frozen=True)
class WeightedSum(Summand):
    """The weighted sum of problems, any of evosax, that have the same kind of solutions."""

    parts: tuple[tuple[float, Problem], ...]

    @static_self
    def init(self, key: jax.Array) -> Any:
        """The states of the problems."""
        keys = jax.random.split(key, len(self.parts))
        return tuple(problem.init(k) for k, (_, problem) in zip(keys, self.parts, strict=True))

    @static_self
    def sample(self, key: jax.Array) -> Solution:
        """A solution of the first problem."""
        return self.parts[0][1].sample(key)

    @static_self
    def eval(self, key: jax.Array, solutions: Population, state: Any) -> Evaluated:
        """The weighted sum of the fitnesses, and the metrics of all problems."""
        total, states, metrics = 0.0, [], {}
        keys = jax.random.split(key, len(self.parts))
        for key, (weight, problem), before in zip(keys, self.parts, state, strict=True):
            fitness, after, found = problem.eval(key, solutions, before)
            total += weight * fitness
            states.append(after)
            metrics |= found
        return total, tuple(states), metrics  # pyright: ignore[reportReturnType]


@dataclasses.dataclass(frozen=True)
class LossProblem(Summand, abc.ABC):
    """A problem of loss networks; the defaults where no configuration is given."""

    metric: ClassVar[str] = ""  # the name of the scores among the metrics, if any
    config: PretrainConfig = None  # pyright: ignore[reportAssignmentType]
    # What the configuration's names stand for: they may be registered anew.
    severity: Severity = dataclasses.field(init=False, repr=False)
    margin: Margin = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        config = config_or_default(self.config, PretrainConfig)
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "severity", objective.SEVERITIES[config.severity])
        object.__setattr__(self, "margin", objective.MARGINS[config.margin])

    def network(self, solution: Solution) -> LossNetwork:
        """The loss network of a solution."""
        return nnx.merge(self.config.architecture().abstract()[0], solution)

    def loss(self, solution: Solution, key: jax.Array | None = None) -> EvolvedLoss:
        """The frozen loss of a solution: as evolved, or calibrated on the key's `held_out_pairs`.

        Raises:
          InputError: if it is flat on the pairs.
        """
        params, scale = nnx.to_pure_dict(solution), jnp.ones((), jnp.float32)
        loss = EvolvedLoss(params, scale, self.config.architecture())
        return loss if key is None else calibrated(loss, self.held_out_pairs(key))

    @static_self
    def sample(self, key: jax.Array) -> Solution:
        """The state of a fresh network."""
        return self.config.architecture().initial_state(key)

    @static_self
    def pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """A generation's pairs, one set for each class count."""
        counts, mixture = self.config.class_counts, self.config.mixture
        each, extra = divmod(self.config.pairs_per_generation, len(counts))
        return tuple(
            sample_pairs(jax.random.fold_in(key, i), each + (i < extra), count, mixture=mixture)
            for i, count in enumerate(counts)
        )

    def held_out_pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """At least `held_out_pairs` pairs, in the sets of as many generations as they take.

        So what draws and measures one generation's pairs is compiled for these too.
        """
        draws = -(-self.config.held_out_pairs // self.config.pairs_per_generation)
        key = jax.random.fold_in(key, HELD_OUT)
        return sum((self.pairs(jax.random.fold_in(key, index)) for index in range(draws)), ())

    @abc.abstractmethod
    def draw(self, key: jax.Array) -> Any:
        """What the networks of a generation are scored on, the same for all."""

    @abc.abstractmethod
    def score(self, network: LossNetwork, drawn: Any) -> jax.Array:
        """The score of a network on what was drawn, a scalar: lower is better."""

    def eval(self, key: jax.Array, solutions: Population, state: Any) -> Evaluated:  # pyright: ignore
        """The scores, `[population]`, as a metric too if it has a name.

        Called from Python it runs the program that draws, then the one that scores.
        """
        fitness = self.scores(solutions, self.draw(key))
        metrics = {self.metric: fitness} if self.metric else {}
        return fitness, state.replace(counter=state.counter + 1), metrics

    @static_self
    def scores(self, solutions: Population, drawn: Any) -> Fitness:
        """The score of every network, `networks_at_a_time` of them together, `[population]`."""
        size = jax.tree.leaves(solutions)[0].shape[0]
        per_network = -(-self.config.pairs_per_generation // PAIRS_AT_A_TIME)
        blocks = -(-size // max(1, self.config.networks_at_a_time // per_network))
        each = -(-size // blocks)
        rows = jnp.minimum(jnp.arange(blocks * each), size - 1).reshape(blocks, each)
        of_block = jax.vmap(lambda solution: self.score(self.network(solution), drawn))
        return jax.lax.map(of_block, jax.tree.map(lambda x: x[rows], solutions)).reshape(-1)[:size]


class PairFeatures(NamedTuple):
    """Pairs as a population sees them: `[num_features, num_pairs]` and `[num_pairs]` float32."""

    features: jax.Array
    severities: jax.Array


class RankingProblem(LossProblem):
    """Share of the required margins that losses miss (docs/method.md, section 3).

    Fitness is 0 where every margin is kept, and 1 for a constant loss, on fresh pairs of the key:
    the same for all solutions.
    """

    def draw(self, key: jax.Array) -> PairFeatures:
        """Fresh pairs as the population sees them."""
        return self.batch(key, self.pairs(key))

    @static_self
    def batch(self, key: jax.Array, pairs_of_counts: tuple[Pairs, ...]) -> PairFeatures:
        """Pairs as the population sees them, in an order that the key draws."""
        network = self.network(self.config.architecture().abstract()[1])  # no parameters are used
        parts = []
        for pairs in pairs_of_counts:
            log_p = log_probabilities(pairs.probabilities)
            severities = objective.apply_severity(self.severity, log_p, pairs.labels)
            parts.append(PairFeatures(network.features(log_p, pairs.labels), severities))
        whole = PairFeatures(*(jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))
        # Class counts come in blocks, and the objective takes opponents by position: mix them.
        order = jax.random.permutation(jax.random.fold_in(key, ORDER), whole.severities.size)
        return jax.tree.map(lambda x: x[..., order], whole)

    def score(self, network: LossNetwork, drawn: PairFeatures) -> jax.Array:
        """The violations."""
        return objective.margin_violation(
            network.from_features(drawn.features),
            drawn.severities,
            margin=self.margin,
            num_opponents=self.config.num_opponents,
        )


class TaskProblem(LossProblem):
    """Mean error of small classifiers on fresh tasks, each loss at its best learning rate."""

    metric = "task_error"

    @static_self
    def draw(self, key: jax.Array) -> Tasks:  # pyright: ignore
        """Fresh tasks."""
        return objective.draw_tasks(key, self.config.tasks, self.config.mixture)

    def score(self, network: LossNetwork, drawn: Tasks) -> jax.Array:
        """The errors."""
        errors = objective.task_errors(network, drawn, self.config.tasks)
        return jnp.min(jnp.mean(errors, axis=-1))


def problem_of(ranking: RankingProblem) -> RankingProblem | WeightedSum:
    """What a configuration asks for: the ranking objective, and the tasks if they have a weight."""
    weight = ranking.config.task_weight
    return ranking + weight * TaskProblem(ranking.config) if weight else ranking
