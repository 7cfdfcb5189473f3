"""Every strategy by name: the two chaotic ones, all that evosax ships, and users' own."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
from evosax.algorithms import algorithms
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.types import Solution

from edl_jax.errors import ConfigError
from edl_jax.registry import Registry
from edl_jax.strategies.chaotic_es import ChaoticES
from edl_jax.strategies.chaotic_snes import ChaoticSNES

# The state, or the work, of these grows with the square of the number of parameters.
QUADRATIC = ("ASEBO", "CMA_ES", "DiffusionEvolution", "MA_ES", "SV_CMA_ES", "iAMaLGaM_Full", "xNES")
MAX_DIMS_OF_QUADRATIC = 2048  # a matrix of 16 MiB, and seconds for its decomposition
WITHOUT_STD = (
    "DifferentialEvolution",
    "DiffusionEvolution",
    "GradientlessDescent",
    "PSO",
    "RandomSearch",
)

# A `PretrainConfig`, which is of a later stage: a strategy reads of it what it needs.
Settings = Any
Factory = Callable[[Settings, Solution], EvolutionaryAlgorithm]

STRATEGIES: Registry[Factory] = Registry("strategy")
"""Factories of strategies by name; `@STRATEGIES.register("mine")` adds one of your own."""


@STRATEGIES.register("ChaoticES")
def chaotic_es(settings: Settings, solution: Solution) -> ChaoticES:
    """The evolution strategy with chaotic mutation."""
    constant = optax.constant_schedule(settings.strategy.std_init)
    return ChaoticES(
        settings.population_size,
        solution,
        mutation=settings.strategy.mutation,
        elite_ratio=settings.strategy.elite_ratio,
        selection=settings.strategy.selection,
        std_schedule=constant if settings.strategy.step_size == "constant" else None,
    )


@STRATEGIES.register("ChaoticSNES")
def chaotic_snes(settings: Settings, solution: Solution) -> ChaoticSNES:
    """The natural evolution strategy with chaotic noise."""
    return ChaoticSNES(settings.population_size, solution, mutation=settings.strategy.mutation)


def _of_evosax(name: str) -> Factory:
    kind = algorithms[name]
    accepted = inspect.signature(kind.__init__).parameters

    def build(settings: Settings, solution: Solution) -> EvolutionaryAlgorithm:
        size = settings.population_size
        offered = {
            "std_schedule": optax.constant_schedule(settings.strategy.std_init),
            "num_generations": settings.generations,
            "num_groups": _divisor_near_root(size - 1),
            "sampling_fn": None,  # `build_strategy` has it
        }
        given = {key: value for key, value in offered.items() if key in accepted}
        if "num_populations" not in accepted:
            return kind(size, solution, **given)
        if size % 2:
            raise ConfigError(
                f"population_size is {size}; {name} keeps two populations: give an even number."
            )
        return kind(size // 2, 2, solution, **given)

    return build


for _name in sorted(algorithms):
    STRATEGIES.register(_name)(_of_evosax(_name))
STRATEGIES.protect()


def build_strategy(
    settings: Settings, sample: Callable[[jax.Array], Solution]
) -> tuple[EvolutionaryAlgorithm, Any]:
    """The strategy that settings name, and its parameters.

    Args:
      settings: a `PretrainConfig`, say.
      sample: `(key) -> solution`, a fresh solution: any pytree of arrays.

    Returns:
      The algorithm and its `Params`, with `std_init` set where it has one.

    Raises:
      ConfigError: if the name is unknown, the strategy refuses the population size, or its cost
        grows with the square of a dimension above `MAX_DIMS_OF_QUADRATIC`.
    """
    name, solution = settings.strategy.name, sample(jax.random.key(0))
    num_dims = sum(x.size for x in jax.tree.leaves(solution))
    if name in QUADRATIC and num_dims > MAX_DIMS_OF_QUADRATIC:
        raise ConfigError(
            f"strategy is {name!r}, whose cost grows with the square of the {num_dims} parameters "
            f"of a network; it is refused above {MAX_DIMS_OF_QUADRATIC}. Use narrower layers, or a "
            "strategy of linear cost such as Sep_CMA_ES, SNES or ChaoticES."
        )
    try:
        algorithm = STRATEGIES[name](settings, solution)
    except AssertionError as error:  # evosax's way to refuse, of an odd population for one
        raise ConfigError(
            f"strategy {name!r} refuses a population_size of {settings.population_size} for "
            f"{num_dims} parameters: {error}"
        ) from error
    size = getattr(algorithm, "total_population_size", getattr(algorithm, "population_size", None))
    if not isinstance(algorithm, EvolutionaryAlgorithm) or size != settings.population_size:
        raise ConfigError(
            f"strategy {name!r} gave {type(algorithm).__name__} of a population of {size}; "
            f"expected an evosax algorithm of a population of {settings.population_size}."
        )
    if name == "RandomSearch":
        algorithm.sampling_fn = sample  # pyright: ignore[reportAttributeAccessIssue]
    params = algorithm.default_params
    if hasattr(params, "std_init"):
        params = params.replace(std_init=settings.strategy.std_init)
    return algorithm, params


def _divisor_near_root(number: int) -> int:
    """The divisor of `number` nearest to its square root."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - number**0.5), default=1)
