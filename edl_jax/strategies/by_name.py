"""Every strategy by name: the two chaotic ones, all that evosax ships, and users' own."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import numpy as np
from annotated_types import Gt, Lt
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.types import Solution

from edl_jax.checked import Checked, OneOf, Positive
from edl_jax.errors import ConfigError
from edl_jax.registry import Registry
from edl_jax.strategies.mutations import MUTATIONS

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
# Really a `PretrainConfig`, which lives in a later folder.
Settings = Any
Factory = Callable[..., EvolutionaryAlgorithm]

STRATEGIES: Registry[Factory] = Registry("strategy")
"""Factories by name, `(settings, solution, *, mutation) -> algorithm`.

Keyword arguments without a default are the fields of `StrategyConfig` that a factory reads.
"""


def _reads(name: str) -> list[str]:
    parameters = inspect.signature(STRATEGIES[name]).parameters.values()
    return [x.name for x in parameters if x.kind is x.KEYWORD_ONLY and x.default is x.empty]


@dataclasses.dataclass(frozen=True)
class StrategyConfig(Checked):
    """An evolution strategy by name. Raises ConfigError, which names the invalid field."""

    name: Annotated[str, OneOf(STRATEGIES)] = "ChaoticES"
    """Evolution strategy: a name in edl_jax.STRATEGIES, such as ChaoticES, or CMA_ES of evosax."""
    mutation: Annotated[str, OneOf(MUTATIONS)] = "logistic"
    """Mutation noise of the chaotic strategies: a name in edl_jax.MUTATIONS, such as logistic."""
    elite_ratio: Annotated[float, Gt(0), Lt(1)] = 0.25
    """Share of the population that ChaoticES keeps as parents."""
    selection: Literal["plus", "comma"] = "plus"
    """Selection of ChaoticES: "plus" keeps the elites and scores them again, "comma" drops them."""
    step_size: Literal["success_rule", "constant"] = "success_rule"
    """Step size adaptation of ChaoticES: the 1/5th success rule, or a constant step size."""
    std_init: Positive = 0.1
    """Standard deviation of the mutations in the first generation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not STRATEGIES.is_protected(self.name):
            return  # your own may use any field
        std = () if self.name in WITHOUT_STD else ("std_init",)
        read = ("name", *std, *_reads(self.name))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in read:
                raise ConfigError(
                    f"StrategyConfig.{field.name} is {value!r} with strategy {self.name!r}, which "
                    f"does not use it; leave it at {field.default!r}."
                )


def build_strategy(
    settings: Settings, sample: Callable[[jax.Array], Solution]
) -> tuple[EvolutionaryAlgorithm, Any]:
    """The strategy that settings name, for solutions like `sample(key)`, and its parameters.

    Raises:
      ConfigError: if the name is unknown, the strategy refuses the population size, or its cost
        grows with the square of a dimension above `MAX_DIMS_OF_QUADRATIC`.
    """
    name, shapes = settings.strategy.name, jax.eval_shape(sample, jax.random.key(0))
    solution = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    num_dims = sum(x.size for x in jax.tree.leaves(solution))
    if name in QUADRATIC and num_dims > MAX_DIMS_OF_QUADRATIC:
        raise ConfigError(
            f"strategy is {name!r}, whose cost grows with the square of the {num_dims} parameters "
            f"of a network; it is refused above {MAX_DIMS_OF_QUADRATIC}. Use narrower layers, or a "
            "strategy of linear cost such as Sep_CMA_ES, SNES or ChaoticES."
        )
    try:
        read = {field: getattr(settings.strategy, field) for field in _reads(name)}
        algorithm = STRATEGIES[name](settings, solution, **read)
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
