"""The configuration of a pretraining: every default here is ours, none is known from the paper."""

import dataclasses
import operator
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from edl_jax.checked import Checked, Count, Distinct, NotNegative, OneOf, Seed
from edl_jax.errors import ConfigError
from edl_jax.networks import Architecture
from edl_jax.networks.loss_network import ACTIVATIONS
from edl_jax.objective import MARGINS, SEVERITIES, TaskConfig
from edl_jax.pairs import Mixture
from edl_jax.runs.describing import describe
from edl_jax.strategies import MUTATIONS, STRATEGIES, StrategyConfig


@dataclasses.dataclass(frozen=True)
class SlopeConfig(Checked):
    """How much a loss's slope counts in its fitness (`edl_jax.objective.slope_violations`)."""

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
    """How a loss is evolved. Raises ConfigError, which names a field that cannot work."""

    network: Literal["class_agnostic", "pair"] = "class_agnostic"
    """Architecture of the loss: "class_agnostic" serves any class count, "pair" just one."""
    hidden: tuple[Count, ...] = (16, 16)
    """Widths of the loss network's hidden layers."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "silu"
    """Activation of the hidden layers: tanh, relu, silu, softplus or squareplus."""
    class_counts: Annotated[tuple[Annotated[int, Ge(2)], ...], MinLen(1), Distinct()] = (2, 10, 100)
    """Class counts of the synthetic pairs, an equal share each; exactly one for "pair"."""
    mixture: Mixture = Mixture()
    """Weights of the regimes that pairs are drawn from."""
    severity: Annotated[str, OneOf(SEVERITIES)] = "surprisal"
    """How wrong a pair is: a name in edl_jax.SEVERITIES, such as surprisal or brier."""
    margin: Annotated[str, OneOf(MARGINS)] = "proportional"
    """Least difference of two losses: a name in edl_jax.MARGINS, proportional or constant."""
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
    """Checkpoints kept, of the last chunks."""
    seed: Seed = 0
    """Seed of the whole run, unless `pretrain` is given a key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.architecture()  # checks the sizes of the network together
        num_counts, pairs, tasks = len(self.class_counts), self.pairs_per_generation, self.tasks
        only = self.class_counts[0] if self.network == "pair" else None
        if only and num_counts > 1:
            field, expected = "class_counts", "exactly one class count for a pair network"
        elif pairs < 2 * num_counts:
            field, expected = "pairs_per_generation", f"two or more for each of {num_counts} counts"
        elif self.num_opponents >= pairs:
            field, expected = "num_opponents", f"fewer than pairs_per_generation, {pairs}"
        elif any(self.slope.weights()) and self.slope.pairs > pairs:
            field, expected = "slope.pairs", f"no more than pairs_per_generation, {pairs}"
        elif not self.task_weight and tasks != TaskConfig():
            field, expected = "task_weight", "more than 0, such as 1, where tasks are configured"
        elif self.task_weight and only and tasks.num_classes != only:
            field, expected = "tasks.num_classes", f"{only}, which the pair network serves"
        else:
            return
        value = operator.attrgetter(field)(self)
        raise ConfigError(f"PretrainConfig.{field} is {value!r}; expected {expected}.")

    def architecture(self) -> Architecture:
        """The structure of the loss networks."""
        num_classes = self.class_counts[0] if self.network == "pair" else None
        return Architecture(self.network, tuple(self.hidden), self.activation, num_classes)


def own_parts(*configs: PretrainConfig) -> dict[str, str]:
    """What tells the users' own parts that configurations name from others of the same names."""
    found = {}
    for config in configs:
        for kind, registry, name in (
            ("severity", SEVERITIES, config.severity),
            ("margin", MARGINS, config.margin),
            ("mutation", MUTATIONS, config.strategy.mutation),
            ("strategy", STRATEGIES, config.strategy.name),
        ):
            if not registry.is_protected(name):
                found[f"{kind} {name}"] = describe(registry[name])
    return found
