"""The configuration of a pretraining: every default here is ours, none is known from the paper."""

import dataclasses
from typing import Literal

from edl_jax.errors import ConfigError
from edl_jax.network import NETWORKS, Architecture
from edl_jax.pairs import Mixture
from edl_jax.ranking import MARGINS, SEVERITIES
from edl_jax.strategy import MUTATIONS
from edl_jax.validation import MAX_SEED, check_choice, check_range, check_whole


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """How a loss is evolved. Checked when made.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    network: Literal["class_agnostic", "pair"] = "class_agnostic"
    """Architecture of the loss: "class_agnostic" serves any class count, "pair" just one."""
    hidden: tuple[int, ...] = (16, 16)
    """Widths of the loss network's hidden layers."""
    activation: str = "silu"
    """Activation of the hidden layers: tanh, relu, silu or softplus."""
    class_counts: tuple[int, ...] = (2, 10, 100)
    """Class counts of the synthetic pairs, an equal share each; exactly one for "pair"."""
    mixture: Mixture = Mixture()
    """Weights of the regimes that pairs are drawn from."""
    severity: str = "surprisal"
    """How wrong a pair is: surprisal, miss_probability, rival_margin or brier."""
    margin: str = "proportional"
    """Least difference of two losses: proportional (to the severities' difference) or constant."""
    num_opponents: int = 4
    """Comparisons that each pair takes part in as the first."""
    mutation: str = "logistic"
    """Mutation noise: logistic, logistic_gaussian, arcsine, gaussian or uniform."""
    population_size: int = 256
    """Loss networks per generation, elites and children together."""
    elite_ratio: float = 0.25
    """Share of the population that survives as parents."""
    std_init: float = 0.1
    """Mutation step size of the first generation; the 1/5th success rule adapts it."""
    pairs_per_generation: int = 4096
    """Fresh synthetic pairs on which a generation is scored."""
    generations: int = 200
    """Generations to evolve."""
    generations_per_chunk: int = 25
    """Generations on the device between two reports to the host (log, checkpoint)."""
    held_out_pairs: int = 100_000
    """Held-out pairs among which the winner is chosen, and again on which it is measured."""
    networks_at_a_time: int = 16
    """Networks evaluated together: bounds memory, and 16 fit a CPU's cache."""
    seed: int = 0
    """Seed of the whole run, unless `pretrain` is given a key."""

    def __post_init__(self) -> None:
        check_choice(self, "network", NETWORKS)
        check_choice(self, "severity", SEVERITIES)
        check_choice(self, "margin", MARGINS)
        check_choice(self, "mutation", MUTATIONS)
        if not self.class_counts or not all(
            isinstance(count, int) and count >= 2 for count in self.class_counts
        ):
            raise ConfigError(
                f"PretrainConfig.class_counts is {self.class_counts}; expected one or more class "
                "counts of at least 2."
            )
        if self.network == "pair" and len(self.class_counts) != 1:
            raise ConfigError(
                f"PretrainConfig.class_counts is {self.class_counts}; a pair network serves "
                "exactly one class count: give one, or use network='class_agnostic'."
            )
        self.architecture()  # checks the fields that describe the network
        check_whole(self, "population_size", 2)
        check_range(self, "elite_ratio", 0, 1, open_low=True)
        if not 1 <= int(self.elite_ratio * self.population_size) < self.population_size:
            raise ConfigError(
                f"PretrainConfig.elite_ratio is {self.elite_ratio} of a population_size of "
                f"{self.population_size}; expected at least one elite and one child."
            )
        check_range(self, "std_init", 0, open_low=True)
        check_whole(self, "pairs_per_generation", 2 * len(self.class_counts))
        check_whole(self, "num_opponents", 1, self.pairs_per_generation - 1)
        check_whole(self, "generations", 1)
        check_whole(self, "generations_per_chunk", 1)
        check_whole(self, "held_out_pairs", 2)
        check_whole(self, "networks_at_a_time", 1)
        check_whole(self, "seed", 0, MAX_SEED)

    def architecture(self) -> Architecture:
        """The structure of the loss networks."""
        num_classes = self.class_counts[0] if self.network == "pair" else None
        return Architecture(self.network, tuple(self.hidden), self.activation, num_classes)
