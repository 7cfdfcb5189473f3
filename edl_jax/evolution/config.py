"""The configuration of a pretraining: every default here is ours, none is known from the paper."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from edl_jax.checked import Checked, Count, Distinct, NotNegative, OneOf, Seed
from edl_jax.errors import ConfigError
from edl_jax.networks import Architecture
from edl_jax.networks.loss_network import ACTIVATIONS
from edl_jax.objective import MARGINS, SEVERITIES, TaskConfig
from edl_jax.pairs import Mixture
from edl_jax.registry import Registry
from edl_jax.runs.describing import describe
from edl_jax.strategies import MUTATIONS, STRATEGIES, StrategyConfig


@dataclasses.dataclass(frozen=True)
class SlopeConfig(Checked):
    """How much a loss's slope counts in its fitness (`edl_jax.objective.slope_violations`).

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    descent: NotNegative = 0.0
    """Weight of descent steps on the logits that raise the severity."""
    norm: NotNegative = 0.0
    """Weight of gradients more than twice as long, or as short, as cross-entropy's."""
    convexity: NotNegative = 0.0
    """Weight of negative curvature along the true class's logit."""
    pairs: Count = 512
    """Further pairs of each generation, on which the slope is measured."""

    def weights(self) -> tuple[float, float, float]:
        """The weights in the order of `SlopeViolations`."""
        return self.descent, self.norm, self.convexity


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Checked):
    """How a loss is evolved.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    network: Literal["class_agnostic", "pair"] = "class_agnostic"
    """Architecture of the loss: "class_agnostic" serves any class count, "pair" just one."""
    hidden: tuple[Count, ...] = (16, 16)
    """Widths of the loss network's hidden layers."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "silu"
    """Activation of the hidden layers: tanh, relu, silu, softplus or squareplus."""
    class_counts: Annotated[tuple[Annotated[int, Ge(2)], ...], MinLen(1), Distinct()] = (2, 10, 100)
    """Class counts of the synthetic pairs, all different, an equal share each; exactly one for
    "pair"."""
    mixture: Mixture = Mixture()
    """Weights of the regimes that pairs are drawn from."""
    severity: Annotated[str, OneOf(SEVERITIES)] = "surprisal"
    """How wrong a pair is: a name in edl_jax.SEVERITIES, such as surprisal or brier."""
    margin: Annotated[str, OneOf(MARGINS)] = "proportional"
    """Least difference of two losses: a name in edl_jax.MARGINS; proportional to the severities'
    difference, or constant."""
    num_opponents: Count = 4
    """Comparisons that each pair takes part in as the first."""
    slope: SlopeConfig = SlopeConfig()
    """Weights of what is asked of the loss's slope beside the ranking objective; 0 by default."""
    task_weight: NotNegative = 0.0
    """Weight of the error of small classifiers on synthetic tasks beside the ranking objective, of
    which 1 is what a constant loss scores; 0 for no tasks."""
    tasks: TaskConfig = TaskConfig()
    """The tasks, if they have a weight."""
    strategy: StrategyConfig = StrategyConfig()
    """The evolution strategy."""
    population_size: Annotated[int, Ge(2)] = 256
    """Loss networks scored in a generation; with ChaoticES elites and children together."""
    pairs_per_generation: Annotated[int, Ge(2)] = 4096
    """Fresh synthetic pairs on which a generation is scored."""
    generations: Count = 200
    """Generations to evolve."""
    generations_per_chunk: Count = 25
    """Generations on the device between two reports to the host (log, checkpoint)."""
    held_out_pairs: Annotated[int, Ge(2)] = 100_000
    """Held-out pairs among which the winner is chosen, and again on which it is measured."""
    networks_at_a_time: Count = 16
    """Networks evaluated together: bounds memory, and 16 fit a CPU's cache."""
    keep_checkpoints: Count = 2
    """Checkpoints kept of the last chunks, beside that of the best on held-out pairs."""
    seed: Seed = 0
    """Seed of the whole run, unless `pretrain` is given a key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network == "pair" and len(self.class_counts) != 1:
            raise ConfigError(
                f"PretrainConfig.class_counts is {self.class_counts}; a pair network serves "
                "exactly one class count: give one, or use network='class_agnostic'."
            )
        self.architecture()  # checks the sizes of the network together
        if self.pairs_per_generation < 2 * len(self.class_counts):
            raise ConfigError(
                f"PretrainConfig.pairs_per_generation is {self.pairs_per_generation} with "
                f"{len(self.class_counts)} class counts; expected two or more for each."
            )
        if any(self.slope.weights()) and self.slope.pairs > self.pairs_per_generation:
            raise ConfigError(
                f"PretrainConfig.slope.pairs is {self.slope.pairs} with pairs_per_generation "
                f"{self.pairs_per_generation}; expected no more."
            )
        if self.num_opponents >= self.pairs_per_generation:
            raise ConfigError(
                f"PretrainConfig.num_opponents is {self.num_opponents} with pairs_per_generation "
                f"{self.pairs_per_generation}; expected fewer."
            )
        self._check_tasks()

    def architecture(self) -> Architecture:
        """The structure of the loss networks."""
        num_classes = self.class_counts[0] if self.network == "pair" else None
        return Architecture(self.network, tuple(self.hidden), self.activation, num_classes)

    def _check_tasks(self) -> None:
        if not self.task_weight and self.tasks != TaskConfig():
            raise ConfigError(
                "PretrainConfig.tasks has settings of its own with a task_weight of 0, so that "
                "none is learned; expected a task_weight of more than 0, such as 1."
            )
        num_classes = self.tasks.num_classes
        if self.task_weight and self.network == "pair" and self.class_counts != (num_classes,):
            raise ConfigError(
                f"PretrainConfig.tasks.num_classes is {num_classes} with a pair network for "
                f"{self.class_counts} classes; expected the same."
            )


_PARTS: dict[str, tuple[Registry[Any], Callable[[PretrainConfig], str]]] = {
    "severity": (SEVERITIES, lambda config: config.severity),
    "margin": (MARGINS, lambda config: config.margin),
    "mutation": (MUTATIONS, lambda config: config.strategy.mutation),
    "strategy": (STRATEGIES, lambda config: config.strategy.name),
}


def own_parts(*configs: PretrainConfig) -> dict[str, str]:
    """What tells the users' own parts that configurations name from others of the same names."""
    return {
        f"{kind} {name}": describe(registry[name])
        for config in configs
        for kind, (registry, name_in) in _PARTS.items()
        if not registry.is_protected(name := name_in(config))
    }
