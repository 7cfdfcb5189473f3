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
from edl_jax.strategies import StrategyConfig

# Notes a field that decides on pairs or margins: of different ones, what is missed is not compared.
OBJECTIVE = "objective"


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Checked):
    """How to evolve a loss. Raises ConfigError, which names the invalid field."""

    network: Literal["class_agnostic", "pair"] = "class_agnostic"
    """Architecture of the loss: "class_agnostic" for any class count, "pair" for exactly one."""
    hidden: tuple[Count, ...] = (16, 16)
    """Widths of the loss network's hidden layers."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "squareplus"
    """Activation of the hidden layers, such as tanh or squareplus."""
    class_counts: Annotated[tuple[Annotated[int, Ge(2)], ...], MinLen(1), Distinct(), OBJECTIVE] = (
        2,
        10,
        100,
    )
    """Class counts of the synthetic pairs, in equal shares; exactly one for the "pair" network."""
    mixture: Annotated[Mixture, OBJECTIVE] = Mixture()
    """Weights of the regimes that pairs are drawn from."""
    severity: Annotated[str, OneOf(SEVERITIES), OBJECTIVE] = "surprisal"
    """Measure of how wrong a pair is: a name in edl_jax.SEVERITIES, such as surprisal or brier."""
    margin: Annotated[str, OneOf(MARGINS), OBJECTIVE] = "proportional"
    """Required difference between the losses of two pairs: a name in edl_jax.MARGINS, such as
    proportional or constant."""
    num_opponents: Count = 4
    """Number of other pairs drawn for each pair to be compared with."""
    task_weight: NotNegative = 0.0
    """Weight of the task error, added to the ranking objective (0 disables tasks). The task error
    is that of small classifiers trained on synthetic tasks. A constant loss has a ranking objective
    of 1."""
    tasks: TaskConfig = TaskConfig()
    """Settings of the synthetic tasks, used if task_weight is above 0."""
    strategy: StrategyConfig = StrategyConfig()
    """The evolution strategy."""
    population_size: Annotated[int, Ge(2)] = 256
    """Number of loss networks per generation; for ChaoticES, elites and children together."""
    pairs_per_generation: Annotated[int, Ge(2)] = 4096
    """Number of fresh synthetic pairs that each generation is scored on."""
    generations: Count = 200
    """Number of generations to evolve."""
    generations_per_chunk: Count = 25
    """Number of generations run on the device between two log entries and checkpoints."""
    held_out_pairs: Annotated[int, Ge(2)] = 100_000
    """Number of held-out pairs used to choose the winner; as many others are used to measure it."""
    networks_at_a_time: Count = 16
    """Number of networks evaluated at once. More need more memory; 16 fit in a CPU's cache."""
    seed: Seed = 0
    """Seed of the whole run; a key passed to `pretrain` replaces it."""

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
