"""Genetic programming (Koza, 1992) on programs of fixed length, so that it runs under jit.

A program is a row of tokens in postfix notation, `[length]` int32: the arguments of an operator
come before it, and 0 stands behind the last token. Children are bred by subtree crossover, by
subtree mutation (crossover with a fresh program) and by point mutation.

[1] Koza, Genetic Programming: On the Programming of Computers by Means of Natural Selection, 1992
"""

from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Lt
from evosax.algorithms.population_based.base import (
    Params as BaseParams,
    PopulationBasedAlgorithm,
    State,
)
from evosax.types import Fitness, Population
from flax import struct

from edl_jax.checked import Count, check
from edl_jax.strategies.chaotic_es import select


@struct.dataclass
class Params(BaseParams):
    """Parameters of `GeneticProgramming`."""

    crossover_rate: float  # share of the children that are bred by crossover
    point_rate: float  # share by point mutation; subtree mutation breeds the rest


class GeneticProgramming(PopulationBasedAlgorithm):
    """Genetic programming with tournaments and elites.

    `ask` returns the elites, best first, and then the children. Elites are evaluated again with
    the children, so that no lucky score of a noisy fitness survives.
    """

    def __init__(
        self,
        population_size: int,
        length: int,
        arity: Sequence[int],
        *,
        needs: Sequence[int] = (),
        elite_ratio: float = 0.1,
        tournament_size: int = 3,
        **options: Any,
    ):
        """Initialize GeneticProgramming.

        Args:
          population_size: programs evaluated in a generation, at least 2.
          length: most tokens of a program, at least 1.
          arity: number of arguments of each token, `arity[i]` of `i + 1`, for the token 0 is none.
          needs: tokens that every program must contain.
          elite_ratio: share of the population that survives, in (0, 1); one program at least.
          tournament_size: number of programs of which the best becomes a parent.
          **options: of evosax's `PopulationBasedAlgorithm`.

        Raises:
          ConfigError: for a number out of range.
        """
        check("population_size", population_size, Annotated[int, Ge(2)])
        check("length", length, Count)
        check("elite_ratio", elite_ratio, Annotated[float, Gt(0), Lt(1)])
        check("tournament_size", tournament_size, Count)
        super().__init__(population_size, jnp.zeros((length,), jnp.int32), **options)
        self.length, self.needs, self.tournament_size = length, tuple(needs), tournament_size
        # The empty token counts as an operator on one argument, which changes no balance below.
        self.arity = np.asarray([1, *arity], np.int32)
        self.elite_ratio = elite_ratio

    @property
    def _default_params(self) -> Params:
        return Params(crossover_rate=0.6, point_rate=0.2)

    def sample(self, key: jax.Array) -> jax.Array:
        """A random program with all that it needs, `[length]` int32."""

        def again(drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            key, key_program = jax.random.split(drawn[0])
            return key, random_program(key_program, self.arity, self.length)

        nothing = jnp.zeros((self.length,), jnp.int32)
        return jax.lax.while_loop(lambda drawn: ~self.is_valid(drawn[1]), again, (key, nothing))[1]

    def is_valid(self, program: jax.Array) -> jax.Array:
        """Whether a program has tokens, and among them those that it needs."""
        found = [jnp.any(program == token) for token in self.needs]
        return jnp.all(jnp.stack([program[0] > 0, *found]))

    def _init(self, key: jax.Array, params: Params) -> State:
        return State(
            population=jnp.zeros((self.population_size, self.length), jnp.int32),
            fitness=jnp.full((self.population_size,), jnp.inf, jnp.float32),
            best_solution=jnp.zeros((self.length,), jnp.int32),
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key: jax.Array, state: State, params: Params) -> tuple[Population, State]:
        elites = state.population[select(state.fitness, self.num_elites)]
        keys = jax.random.split(key, self.population_size - self.num_elites)
        children = jax.vmap(lambda key: self._child(key, state, params))(keys)
        return jnp.concatenate([elites, children]), state

    def _tell(
        self, key: jax.Array, population: Population, fitness: Fitness, state: State, params: Params
    ) -> State:
        fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)
        return state.replace(population=population, fitness=fitness)

    def _child(self, key: jax.Array, state: State, params: Params) -> jax.Array:
        """A child; a fresh program where breeding gives one that is too long or lacks a token."""
        key_first, key_second, key_fresh, key_kind, key_breed = jax.random.split(key, 5)
        first, second = (self._winner(key, state) for key in (key_first, key_second))
        fresh, kind = self.sample(key_fresh), jax.random.uniform(key_kind)
        donor = jnp.where(kind < params.crossover_rate, second, fresh)
        is_point = kind >= 1 - params.point_rate
        mutated = point_mutation(key_breed, first, self.arity)
        child = jnp.where(is_point, mutated, crossover(key_breed, first, donor, self.arity))
        return jnp.where(self.is_valid(child), child, fresh)

    def _winner(self, key: jax.Array, state: State) -> jax.Array:
        drawn = jax.random.randint(key, (self.tournament_size,), 0, self.population_size)
        return state.population[drawn[jnp.argmin(state.fitness[drawn])]]


def random_program(key: jax.Array, arity: np.ndarray, length: int) -> jax.Array:
    """A program grown from its last token, `[length]` int32; all tokens that fit are as likely."""
    arities = jnp.asarray(arity)

    def grown(
        missing: jax.Array, place: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        key, left = place  # places that are left after this one
        fits = (arities <= left - missing + 1) & (jnp.arange(len(arity)) > 0)
        token = jax.random.categorical(key, jnp.where(fits, 0.0, -jnp.inf))
        token = jnp.where(missing > 0, token, 0)
        return missing + arities[token] - 1, token

    places = jax.random.split(key, length), jnp.arange(length - 1, -1, -1)
    prefix = jax.lax.scan(grown, jnp.asarray(1, jnp.int32), places)[1]
    return jnp.roll(prefix[::-1], _size(prefix) - length).astype(jnp.int32)


def crossover(key: jax.Array, program: jax.Array, donor: jax.Array, arity: np.ndarray) -> jax.Array:
    """The program with a random subtree replaced by one of the donor; empty if it is too long."""
    key_program, key_donor = jax.random.split(key)
    begin, end = random_subtree(key_program, program, arity)
    first, last = random_subtree(key_donor, donor, arity)
    at, graft = jnp.arange(len(program)), last - first
    size = _size(program) - (end - begin) + graft
    after = jnp.roll(program, begin + graft - end)
    child = jnp.where(at < begin + graft, jnp.roll(donor, begin - first), after)
    child = jnp.where(at < begin, program, child)
    return jnp.where((at < size) & (size <= len(program)), child, 0)


def point_mutation(key: jax.Array, program: jax.Array, arity: np.ndarray) -> jax.Array:
    """The program with a random token replaced by one with as many arguments."""
    key_place, key_token = jax.random.split(key)
    place, arities = jax.random.randint(key_place, (), 0, _size(program)), jnp.asarray(arity)
    fits = (arities == arities[program[place]]) & (jnp.arange(len(arity)) > 0)
    token = jax.random.categorical(key_token, jnp.where(fits, 0.0, -jnp.inf))
    return program.at[place].set(token.astype(program.dtype))


def random_subtree(
    key: jax.Array, program: jax.Array, arity: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Where a random subtree begins, and where it has ended."""
    last = jax.random.randint(key, (), 0, _size(program))
    # Values on the stack: before a subtree there is one less than after it, and within it never.
    height = jnp.cumsum(1 - jnp.asarray(arity)[program])
    at = jnp.arange(len(program))
    before = (at < last) & (height == height[last] - 1)
    return jnp.max(jnp.where(before, at + 1, 0)), last + 1


def _size(program: jax.Array) -> jax.Array:
    return jnp.sum(program > 0)
