"""Weighted sums of evosax problems."""

import dataclasses
from functools import partial
from typing import Any

import jax
from evosax.problems import Problem
from evosax.types import Fitness, Metrics, Population, Solution

static_self = partial(jax.jit, static_argnames=("self",))  # as evosax compiles methods


class Summand(Problem):
    """A problem that can be weighted and added to others: `0.7 * one + 0.3 * other`."""

    # Whether `eval` draws neither by its key itself nor by the first, fourth and fifth of the keys
    # that it splits into, so that `Evolution.generation` may breed by these.
    spares_key = False

    def terms(self) -> tuple[tuple[float, Problem], ...]:
        """Weights and problems, of which this one is the sum."""
        return ((1.0, self),)

    def __rmul__(self, weight: float) -> "WeightedSum":
        """The problem with its fitness multiplied by a weight."""
        return WeightedSum(tuple((weight * own, problem) for own, problem in self.terms()))

    def __add__(self, other: "Summand") -> "WeightedSum":
        """The sum of both."""
        return WeightedSum(self.terms() + other.terms())


@dataclasses.dataclass(frozen=True)
class WeightedSum(Summand):
    """The weighted sum of problems, any of evosax, that have the same kind of solutions.

    Attributes:
      parts: a weight and a problem each.
    """

    parts: tuple[tuple[float, Problem], ...]
    spares_key = True

    def terms(self) -> tuple[tuple[float, Problem], ...]:
        """The parts."""
        return self.parts

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
        total, states, metrics, place = 0.0, [], {}, 5
        for (weight, problem), before in zip(self.parts, state, strict=True):
            key_part = key
            if not getattr(problem, "spares_key", False):
                key_part, place = jax.random.fold_in(key, place), place + 1
            fitness, after, found = problem.eval(key_part, solutions, before)
            total += weight * fitness
            states.append(after)
            metrics |= found
        return total, tuple(states), metrics  # pyright: ignore[reportReturnType]
