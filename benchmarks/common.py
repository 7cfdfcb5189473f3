"""What the population benchmarks share: the work that everybody does, and who does it."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Run
from edl_jax import PretrainConfig
from edl_jax.pairs import Mixture
from edl_jax.strategies import StrategyConfig

# Kernels `[population, fan_in, fan_out]` and biases `[population, fan_out]` of each layer.
Layers = list[tuple[np.ndarray, np.ndarray]]
NUM_FEATURES = 5
TEMPERED = Mixture(
    uniform=0, sparse=0, confident_correct=0, confident_wrong=0, ambiguous=0, untrained=0
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What every contestant does: the same network, pairs and objective, in float32.

    A generation draws fresh pairs (Gaussian logits over a log-uniform temperature in [0.1, 10];
    half of the labels drawn from the prediction, half uniform), reads the five class-agnostic
    features and the surprisal of each, scores every network (of squareplus units) by the margins
    that it violates against four opponents of each pair, keeps the best and mutates them.
    """

    population_size: int
    num_pairs: int
    hidden: tuple[int, ...] = (16, 16)
    num_classes: int = 10
    num_opponents: int = 4
    elite_ratio: float = 0.25
    std: float = 0.1
    networks_at_a_time: int = 16  # of ours

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the layers, the features first."""
        return (NUM_FEATURES, *self.hidden, 1)

    @property
    def num_parameters(self) -> int:
        """Parameters of one network."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in itertools.pairwise(self.sizes))

    @property
    def num_elites(self) -> int:
        """Networks that become parents."""
        return max(1, int(self.elite_ratio * self.population_size))

    @property
    def pair_evaluations(self) -> int:
        """Evaluations of one network on one pair in a generation."""
        return self.population_size * self.num_pairs

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of a generation, two a weight."""
        weights = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(self.sizes))
        return 2 * weights * self.pair_evaluations

    def config(self) -> PretrainConfig:
        """The same work as a configuration of ours."""
        return PretrainConfig(
            hidden=self.hidden,
            class_counts=(self.num_classes,),
            mixture=TEMPERED,
            num_opponents=self.num_opponents,
            networks_at_a_time=self.networks_at_a_time,
            population_size=self.population_size,
            strategy=StrategyConfig(elite_ratio=self.elite_ratio, std_init=self.std),
            pairs_per_generation=self.num_pairs,
        )


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work, if nothing is `missing`: otherwise why not and how to change that.

    Each run of an `evaluation` of `(work, layers, features, severities)` scores the population,
    `features` being `[5, num_pairs]` and `severities` `[num_pairs]`, and gives `[population]`; each
    run of `generations` of `(work, seed)` is `unit(work)` generations.
    """

    name: str
    evaluation: Callable[[Work, Layers, np.ndarray, np.ndarray], Run]
    generations: Callable[[Work, int], Run]
    unit: Callable[[Work], int] = lambda work: 1
    missing: Callable[[], str | None] = lambda: None


def random_layers(work: Work, seed: int = 0) -> Layers:
    """A population of networks with LeCun-normal kernels and small biases."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((work.population_size, *shape)).astype(np.float32)

    return [
        (normal(fan_in, fan_out) / np.float32(np.sqrt(fan_in)), np.float32(0.1) * normal(fan_out))
        for fan_in, fan_out in itertools.pairwise(work.sizes)
    ]


def flattened(layers: Layers) -> np.ndarray:
    """Networks `[population, num_parameters]` of layers."""
    return np.concatenate([part.reshape(len(part), -1) for pair in layers for part in pair], axis=1)


def unflattened(population: Any, sizes: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """The inverse of `flattened`, of NumPy or PyTorch."""
    layers, begin = [], 0
    for fan_in, fan_out in itertools.pairwise(sizes):
        middle = begin + fan_in * fan_out
        kernel = population[:, begin:middle].reshape(-1, fan_in, fan_out)
        layers.append((kernel, population[:, middle : middle + fan_out]))
        begin = middle + fan_out
    return layers
