"""All of evosax's strategies by their names."""

import inspect

import optax
from evosax.algorithms import algorithms
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.types import Solution

from edl_jax.strategies.by_name import STRATEGIES, Factory, Settings


def _of_evosax(name: str) -> Factory:
    kind = algorithms[name]
    accepted = inspect.signature(kind.__init__).parameters

    def build(settings: Settings, solution: Solution) -> EvolutionaryAlgorithm:
        size = settings.population_size
        offered = {
            "std_schedule": optax.constant_schedule(settings.strategy.std_init),
            "num_generations": settings.generations,
            # The divisor of `size - 1` nearest to its square root.
            "num_groups": max(d for d in range(1, size) if (size - 1) % d == 0 and d * d < size),
            "sampling_fn": None,  # `build_strategy` has it
        }
        options = {key: value for key, value in offered.items() if key in accepted}
        if "num_populations" not in accepted:
            return kind(size, solution, **options)
        assert size % 2 == 0, "it keeps two populations: give an even number"
        return kind(size // 2, 2, solution, **options)

    return build


for _name in sorted(algorithms):
    STRATEGIES.register(_name)(_of_evosax(_name))
