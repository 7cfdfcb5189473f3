"""Which evolution strategy, and its settings."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from edl_jax.checked import Checked, OneOf, Positive
from edl_jax.errors import ConfigError
from edl_jax.strategies.by_name import STRATEGIES, WITHOUT_STD
from edl_jax.strategies.mutations import MUTATIONS

# What only some strategies know of; elsewhere another value than the default is refused.
_ONLY_FOR = {
    "mutation": ("ChaoticES", "ChaoticSNES"),
    "selection": ("ChaoticES",),
    "elite_ratio": ("ChaoticES",),
    "step_size": ("ChaoticES",),
}


@dataclasses.dataclass(frozen=True)
class StrategyConfig(Checked):
    """An evolution strategy.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    name: Annotated[str, OneOf(STRATEGIES)] = "ChaoticES"
    """Evolution strategy: ChaoticES, ChaoticSNES, any that evosax ships (SimpleGA, CMA_ES, ...), or
    one of your own in edl_jax.STRATEGIES."""
    mutation: Annotated[str, OneOf(MUTATIONS)] = "logistic"
    """Noise of the chaotic strategies: a name in edl_jax.MUTATIONS, such as logistic, or gaussian,
    one of the controls without an orbit."""
    elite_ratio: Annotated[float, Gt(0), Lt(1)] = 0.25
    """Share of the population that ChaoticES takes as parents."""
    selection: Literal["plus", "comma"] = "plus"
    """Selection of ChaoticES: "plus" keeps the elites and scores them again, "comma" does not."""
    step_size: Literal["success_rule", "constant"] = "success_rule"
    """How the mutation step size of ChaoticES changes: by the 1/5th success rule, or not at all."""
    std_init: Positive = 0.1
    """Mutation step size of the first generation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not STRATEGIES.is_protected(self.name):
            return  # your own may use any field
        served = _ONLY_FOR | ({"std_init": ()} if self.name in WITHOUT_STD else {})
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and self.name not in served.get(field.name, (self.name,)):
                raise ConfigError(
                    f"StrategyConfig.{field.name} is {value!r} with strategy {self.name!r}, which "
                    f"does not use it; leave it at {field.default!r}."
                )
