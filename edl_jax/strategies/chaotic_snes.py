"""Separable Natural Evolution Strategy (Wierstra et al., 2014) with chaotic noise.

https://www.jmlr.org/papers/volume15/wierstra14a/wierstra14a.pdf
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Ge
from evosax.algorithms.distribution_based.snes import SNES, Params, State as BaseState
from evosax.types import Fitness, Population, Solution
from flax import struct

from edl_jax.checked import check
from edl_jax.strategies.by_name import STRATEGIES
from edl_jax.strategies.mutations import MUTATIONS


@struct.dataclass
class State(BaseState):
    """State of `ChaoticSNES`: that of SNES, and `orbit`, `[population_size, num_dims]` uint32."""

    orbit: jax.Array


class ChaoticSNES(SNES):
    """Separable natural evolution strategy with chaotic noise of zero mean and unit variance.

    It is SNES as evosax has it, but for the noise around the mean, of which its update asks the
    first two moments only: every mutation has them. With `mutation="gaussian"` it is SNES.
    """

    def __init__(
        self, population_size: int, solution: Solution, mutation: str = "logistic", **options: Any
    ):
        """Initialize ChaoticSNES.

        Args:
          population_size: solutions evaluated in a generation, at least 2.
          solution: a solution, any pytree of arrays; gives the shapes.
          mutation: name of the noise in `MUTATIONS`.
          **options: of SNES.

        Raises:
          ConfigError: for an unknown mutation, or a population of fewer than 2.
        """
        check("population_size", population_size, Annotated[int, Ge(2)])
        super().__init__(population_size, solution, **options)
        self.mutation = MUTATIONS[mutation]

    def _init(self, key: jax.Array, params: Params) -> State:  # pyright: ignore[reportIncompatibleMethodOverride]
        base = super()._init(key, params)
        dtype = jnp.promote_types(self.solution_flat.dtype, jnp.float32)
        # evosax's own is NaN, which stops a program under `jax_debug_nans`.
        no_solution = jnp.zeros(self.num_dims, dtype)
        base = base.replace(std=base.std.astype(dtype), best_solution=no_solution)
        orbit = self.mutation.init(key, (self.population_size, self.num_dims))
        return State(**vars(base), orbit=orbit)

    def _ask(self, key: jax.Array, state: State, params: Params) -> tuple[Population, State]:  # pyright: ignore[reportIncompatibleMethodOverride]
        orbit, noise = self.mutation.step(key, state.orbit)
        return state.mean[None] + state.std[None] * noise, state.replace(orbit=orbit)

    def _tell(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key: jax.Array, population: Population, fitness: Fitness, state: State, params: Params
    ) -> State:
        with jax.numpy_rank_promotion("allow"):  # which evosax counts on
            after: Any = super()._tell(key, population, fitness, state, params)
        return after.replace(std=after.std.astype(state.std.dtype))


@STRATEGIES.register("ChaoticSNES")
def _by_name(settings: Any, solution: Solution, *, mutation: str) -> ChaoticSNES:
    return ChaoticSNES(settings.population_size, solution, mutation=mutation)
