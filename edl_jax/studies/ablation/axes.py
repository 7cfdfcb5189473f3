"""The settings of an evolution that an ablation can compare: a new one is a row of `AXES`.

It takes a field of `Cell` and one of `AblateConfig` besides, in the same order.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Axis(NamedTuple):
    """A setting that is compared.

    Attributes:
      field: of `PretrainConfig`, and of `Cell`.
      given: the field of `AblateConfig` that holds its values.
      heading: of its column in tables.
      phrase: how a value of it is told.
      question: begins the sentence on what it brings; none where values are not compared with
        the first one.
    """

    field: str
    given: str
    heading: str
    phrase: str
    question: str | None = None

    def effect(self) -> str:
        """What a difference along this axis is called."""
        return self.field.replace("_", " ")


# Mutations are compared with their controls instead; severities have objectives, and class counts
# pairs, of their own.
AXES = (
    Axis("mutation", "mutations", "mutation", "{}"),
    Axis("severity", "severities", "severity", "{}"),
    Axis("selection", "selections", "selection", "{} selection", "Selection"),
    Axis(
        "population_size",
        "population_sizes",
        "population",
        "population {}",
        "Population size, over as many generations",
    ),
    Axis("strategy", "strategies", "strategy", "{}", "Strategy"),
    Axis("network", "networks", "network", "{} network", "Network"),
    Axis("hidden", "hidden_layers", "hidden layers", "layers {}", "Hidden layers"),
    Axis("class_counts", "class_count_sets", "classes", "{} classes"),
    Axis("elite_ratio", "elite_ratios", "elites", "elites {}", "Share of elites"),
    Axis("step_size", "step_sizes", "step size", "step size {}", "Rule of the step size"),
    Axis("std_init", "std_inits", "first step", "first step {}", "First step size"),
    Axis("pairs_per_generation", "pair_numbers", "pairs", "{} pairs", "Pairs of a generation"),
)


class Cell(NamedTuple):
    """One combination of the settings that are compared, fields of `PretrainConfig`.

    Those with a default are None where they are not compared: all cells have `pretrain`'s.
    """

    mutation: str
    severity: str
    selection: str
    population_size: int
    strategy: str | None = None
    network: str | None = None
    hidden: tuple[int, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    elite_ratio: float | None = None
    step_size: str | None = None
    std_init: float | None = None
    pairs_per_generation: int | None = None

    def compared(self) -> dict[str, Any]:
        """What is compared, by the field's name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def name_of(value: Any) -> str:
    """A value of a setting in words: `16, 16` of the layers (16, 16)."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def setting_name(values: Iterable[Any]) -> str:
    """Values of a cell's settings in one phrase; those that are None are left out."""
    told = [
        axis.phrase.format(name_of(value))
        for axis, value in zip(AXES, values, strict=True)
        if value is not None
    ]
    return ", ".join(told)
