"""What our problems share: weighted sums, the loss networks, and the pairs."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from evosax.problems import Problem
from evosax.problems.problem import State
from evosax.types import Fitness, Metrics, Population, Solution
from flax import nnx

from edl_jax.checked import config_or_default
from edl_jax.evolution.config import PretrainConfig
from edl_jax.losses import EvolvedLoss, calibrated
from edl_jax.networks import LossNetwork
from edl_jax.objective import MARGINS, SEVERITIES
from edl_jax.objective.severity import Margin, Severity
from edl_jax.pairs import Pairs, sample_pairs

static_self = partial(jax.jit, static_argnames=("self",))  # as evosax compiles methods

PAIRS_AT_A_TIME = 4096  # `networks_at_a_time` are evaluated on them: fewer on more pairs

# Several functions may be given one key: each first folds in a number of its own, so that none
# draws what another does. `pairs` folds in the index of a class count, which is smaller.
ORDER, HELD_OUT, TASKS = range(2**31, 2**31 + 3)


class Summand(Problem):
    """A problem that can be weighted and added to others: `0.7 * one + 0.3 * other`."""

    # Whether `eval` draws neither by its key itself nor by the first, fourth and fifth of the keys
    # that it splits into, so that `Evolution.generation` may breed by these.
    spares_key = False

    def __rmul__(self, weight: float) -> "WeightedSum":
        """The problem with its fitness multiplied by a weight."""
        return WeightedSum(tuple((weight * own, problem) for own, problem in _parts(self)))

    def __add__(self, other: Problem) -> "WeightedSum":
        """The sum of both."""
        return WeightedSum(_parts(self) + _parts(other))


def _parts(problem: Problem) -> tuple[tuple[float, Problem], ...]:
    return getattr(problem, "parts", ((1.0, problem),))


@dataclasses.dataclass(frozen=True)
class WeightedSum(Summand):
    """The sum of problems, any of evosax, that have the same kind of solutions, and their weights.

    Solutions are sampled by the first.
    """

    parts: tuple[tuple[float, Problem], ...]
    spares_key = True

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
    def eval(
        self, key: jax.Array, solutions: Population, state: Any
    ) -> tuple[Fitness, Any, Metrics]:
        """The weighted sum of the fitnesses, and the metrics of all problems."""
        total, states, metrics, places = 0.0, [], {}, itertools.count(5)
        for (weight, problem), before in zip(self.parts, state, strict=True):
            is_sparing = getattr(problem, "spares_key", False)
            own_key = key if is_sparing else jax.random.fold_in(key, next(places))
            fitness, after, found = problem.eval(own_key, solutions, before)
            total += weight * fitness
            states.append(after)
            metrics |= found
        return total, tuple(states), metrics  # pyright: ignore[reportReturnType]


@dataclasses.dataclass(frozen=True)
class LossProblem(Summand):
    """What problems of loss networks share: the networks, and the pairs.

    Attributes:
      config: which network, pairs and objective; the defaults if None.
    """

    metric: ClassVar[str] = ""
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
        counts, mixture = self.config.class_counts, self.config.mixture
        each, extra = divmod(self.config.pairs_per_generation, len(counts))
        return tuple(
            sample_pairs(
                jax.random.fold_in(key, index), each + (index < extra), count, mixture=mixture
            )
            for index, count in enumerate(counts)
        )

    def held_out_pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """At least `held_out_pairs` pairs, drawn a generation's worth at a time by one program."""
        draws = -(-self.config.held_out_pairs // self.config.pairs_per_generation)
        key = jax.random.fold_in(key, HELD_OUT)
        parts = [self.pairs(jax.random.fold_in(key, index)) for index in range(draws)]
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

    def scores(self, key: jax.Array) -> Callable[[LossNetwork], jax.Array]:
        """What scores a network by what it draws of the key: lower is better."""
        raise NotImplementedError

    @static_self
    def eval(
        self, key: jax.Array, solutions: Population, state: State
    ) -> tuple[Fitness, State, Metrics]:
        """The scores, `[population]`, as a metric too if it has a name."""
        fitness = self.of_every(self.scores(key), solutions)
        after = state.replace(counter=state.counter + 1)  # pyright: ignore[reportAttributeAccessIssue]
        return fitness, after, {self.metric: fitness} if self.metric else {}

    def of_every(
        self, function: Callable[[LossNetwork], jax.Array], solutions: Population
    ) -> Fitness:
        """A function of every network, `networks_at_a_time` of them together, `[population]`."""
        size = jax.tree.leaves(solutions)[0].shape[0]
        per_network = -(-self.config.pairs_per_generation // PAIRS_AT_A_TIME)
        blocks = -(-size // max(1, self.config.networks_at_a_time // per_network))
        each = -(-size // blocks)
        rows = jnp.minimum(jnp.arange(blocks * each), size - 1).reshape(blocks, each)
        of_block = jax.vmap(lambda solution: function(self.network(solution)))
        return jax.lax.map(of_block, jax.tree.map(lambda x: x[rows], solutions)).reshape(-1)[:size]
