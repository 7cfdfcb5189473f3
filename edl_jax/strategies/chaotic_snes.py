"""Separable Natural Evolution Strategy (Wierstra et al., 2014) with chaotic noise.

The distribution-based counterpart of `ChaoticES`: SNES as evosax has it, but for the noise around
the mean, which is a chaotic orbit (Xiang and Pei, 2026) or one of its controls.

[1] https://www.jmlr.org/papers/volume15/wierstra14a/wierstra14a.pdf
[2] https://arxiv.org/abs/2605.03722
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms.distribution_based.base import metrics_fn
from evosax.algorithms.distribution_based.snes import SNES, Params, State as BaseState
from evosax.core.fitness_shaping import weights_fitness_shaping_fn
from evosax.types import Fitness, Population, Solution
from flax import struct

from edl_jax.errors import ConfigError
from edl_jax.strategies.mutations import MUTATIONS


@struct.dataclass
class State(BaseState):
    """State of `ChaoticSNES`.

    Attributes:
      orbit: phase of the chaotic orbit of every coordinate of every sample, `[population_size,
        num_dims]` uint32.
    """

    orbit: jax.Array


class ChaoticSNES(SNES):
    """Separable Natural Evolution Strategy with chaotic noise of zero mean and unit variance.

    The update of SNES asks of the noise its first two moments only (`E z = 0`, `E z^2 = 1`), which
    every mutation has. With `mutation="gaussian"` it is SNES.
    """

    def __init__(
        self,
        population_size: int,
        solution: Solution,
        mutation: str = "logistic",
        optimizer: optax.GradientTransformation | None = None,
        fitness_shaping_fn: Callable = weights_fitness_shaping_fn,
        metrics_fn: Callable = metrics_fn,
    ):
        """Initialize ChaoticSNES.

        Args:
          population_size: solutions evaluated in a generation, at least 2.
          solution: a solution, any pytree of arrays; gives the shapes.
          mutation: name of the noise in `MUTATIONS`.
          optimizer: of the mean; gradient descent with a rate of 1, as in SNES, by default.
          fitness_shaping_fn: as in evosax.
          metrics_fn: as in evosax.

        Raises:
          ConfigError: for an unknown mutation, or a population of fewer than 2.
        """
        if not isinstance(population_size, int | np.integer) or population_size < 2:
            raise ConfigError(
                f"population_size is {population_size!r}; expected a whole number of at least 2."
            )
        optimizer = optax.sgd(1.0) if optimizer is None else optimizer
        super().__init__(population_size, solution, optimizer, fitness_shaping_fn, metrics_fn)
        self.mutation = MUTATIONS[mutation]

    def _init(self, key: jax.Array, params: Params) -> State:  # pyright: ignore[reportIncompatibleMethodOverride]
        base = super()._init(key, params)
        dtype = jnp.promote_types(self.solution_flat.dtype, jnp.float32)
        # evosax's own is NaN, which stops a program under `jax_debug_nans`.
        no_solution = jnp.zeros(self.num_dims, dtype)
        base = base.replace(std=base.std.astype(dtype), best_solution=no_solution)
        orbit = self.mutation.init(key, (self.population_size, self.num_dims))
        return State(**vars(base), orbit=orbit)

    def _ask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key: jax.Array, state: State, params: Params
    ) -> tuple[Population, State]:
        orbit, noise = self.mutation.step(key, state.orbit)
        return state.mean[None] + state.std[None] * noise, state.replace(orbit=orbit)

    def _tell(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        key: jax.Array,
        population: Population,
        fitness: Fitness,
        state: State,
        params: Params,
    ) -> State:
        with jax.numpy_rank_promotion("allow"):  # which evosax counts on
            after: Any = super()._tell(key, population, fitness, state, params)
        return after.replace(std=after.std.astype(state.std.dtype))
