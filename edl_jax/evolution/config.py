"""The configuration of a pretraining: every default here is ours, none is known from the paper."""

import dataclasses
from typing import Literal

import jax

from edl_jax.errors import ConfigError
from edl_jax.networks import Architecture
from edl_jax.networks.fused import check_widths
from edl_jax.objective import MARGINS, SEVERITIES, TaskConfig
from edl_jax.pairs import Mixture
from edl_jax.strategies import MUTATIONS, STRATEGIES
from edl_jax.strategies.by_name import SCHEDULES, WITHOUT_STD, is_built_in, takes_schedule
from edl_jax.strategies.chaotic_es import STEP_SIZE_RULES
from edl_jax.validation import (
    MAX_SEED,
    check_choice,
    check_different,
    check_range,
    check_types,
    check_whole,
    check_wholes,
)

# What only some strategies know of; elsewhere another value than the default is refused.
_ONLY_FOR = {
    "mutation": ("ChaoticES", "ChaoticSNES"),
    "selection": ("ChaoticES",),
    "use_crossover": ("ChaoticES",),
}


@dataclasses.dataclass(frozen=True)
class SlopeConfig:
    """How much a loss's slope counts in its fitness (`edl_jax.objective.slope`). Checked when made.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    descent: float = 0.0
    """Weight of descent steps on the logits that raise the severity."""
    norm: float = 0.0
    """Weight of gradients more than twice as long, or as short, as cross-entropy's."""
    convexity: float = 0.0
    """Weight of negative curvature along the true class's logit."""
    pairs: int = 512
    """Further pairs of each generation, on which the slope is measured."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in ("descent", "norm", "convexity"):
            check_range(self, field, 0)
        check_whole(self, "pairs", 1)

    def weights(self) -> tuple[float, float, float]:
        """The weights in the order of `SlopeViolations`."""
        return self.descent, self.norm, self.convexity


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
    """Activation of the hidden layers: tanh, relu, silu, softplus or squareplus."""
    class_counts: tuple[int, ...] = (2, 10, 100)
    """Class counts of the synthetic pairs, all different, an equal share each; exactly one for
    "pair"."""
    mixture: Mixture = Mixture()
    """Weights of the regimes that pairs are drawn from."""
    severity: str = "surprisal"
    """How wrong a pair is: a name in edl_jax.SEVERITIES, such as surprisal or brier."""
    margin: str = "proportional"
    """Least difference of two losses: a name in edl_jax.MARGINS; proportional to the severities'
    difference, or constant."""
    num_opponents: int = 4
    """Comparisons that each pair takes part in as the first."""
    slope: SlopeConfig = SlopeConfig()
    """Weights of what is asked of the loss's slope beside the ranking objective; 0 unless given."""
    task_weight: float = 0.0
    """Weight of the error of small classifiers on synthetic tasks beside the ranking objective, of
    which 1 is what a constant loss scores; 0 for no tasks."""
    tasks: TaskConfig = TaskConfig()
    """The tasks, if they have a weight."""
    strategy: str = "ChaoticES"
    """Evolution strategy: ChaoticES, ChaoticSNES, any that evosax ships (SimpleGA, CMA_ES, ...), or
    one of your own in edl_jax.STRATEGIES."""
    mutation: str = "logistic"
    """Noise of the chaotic strategies: a name in edl_jax.MUTATIONS, such as logistic, or gaussian,
    one of the controls without an orbit."""
    population_size: int = 256
    """Loss networks scored in a generation; with ChaoticES elites and children together."""
    elite_ratio: float = 0.25
    """Share of the population that ChaoticES takes as parents, and from which the winner is
    chosen at the end, whatever the strategy."""
    selection: Literal["plus", "comma"] = "plus"
    """Selection of ChaoticES: "plus" keeps the elites and scores them again, "comma" does not."""
    use_crossover: bool = False
    """Whether a child in ChaoticES mixes two parents."""
    step_size: str = "auto"
    """How the mutation step size changes: success_rule or self_adaptive (ChaoticES only), constant,
    cosine or exponential (strategies that take a schedule); auto is ChaoticES's success_rule, and
    elsewhere the strategy's own way."""
    std_init: float = 0.1
    """Mutation step size of the first generation."""
    std_final: float = 0.001
    """Mutation step size of the last generation, for the cosine and exponential schedules; of all,
    where there are too few generations for two step sizes."""
    restart_after: int = 0
    """Generations without an improvement of the best fitness by 1 % after which evolution begins
    anew, keeping the leader for the final choice; 0 for never."""
    pairs_per_generation: int = 4096
    """Fresh synthetic pairs on which a generation is scored."""
    generations: int = 200
    """Generations to evolve."""
    generations_per_chunk: int = 25
    """Generations on the device between two reports to the host (log, checkpoint)."""
    held_out_pairs: int = 100_000
    """Held-out pairs among which the winner is chosen, and again on which it is measured."""
    networks_at_a_time: int = 16
    """Networks evaluated together: bounds memory, and 16 fit a CPU's cache. With more than
    population_size / devices each device evaluates some in vain."""
    pairs_at_a_time: int = 4096
    """Pairs evaluated together: bounds memory."""
    kernel: Literal["xla", "pallas"] = "xla"
    """How accelerators evaluate the networks: "xla" layer by layer, "pallas" by one fused kernel on
    all pairs at once, whose layers have at most 128 inputs; give networks_at_a_time too, no more
    than population_size / devices. CPUs always use XLA."""
    keep_checkpoints: int = 2
    """Checkpoints kept of the last chunks, beside that of the best leader on held-out pairs."""
    seed: int = 0
    """Seed of the whole run, unless `pretrain` is given a key."""

    def __post_init__(self) -> None:
        check_types(self)
        check_choice(self, "severity", SEVERITIES)
        check_choice(self, "margin", MARGINS)
        check_choice(self, "strategy", STRATEGIES)
        check_choice(self, "mutation", MUTATIONS)
        check_choice(self, "step_size", ("auto", *STEP_SIZE_RULES, *SCHEDULES))
        self._check_fit_of_strategy()
        check_wholes(self, "class_counts", 2)
        if not self.class_counts:
            raise ConfigError("PretrainConfig.class_counts is empty; expected at least one.")
        check_different(self, "class_counts")
        check_wholes(self, "hidden", 1)
        if self.network == "pair" and len(self.class_counts) != 1:
            raise ConfigError(
                f"PretrainConfig.class_counts is {self.class_counts}; a pair network serves "
                "exactly one class count: give one, or use network='class_agnostic'."
            )
        architecture = self.architecture()  # checks the fields that describe the network
        if self.kernel == "pallas":
            arrays = jax.tree.leaves(architecture.abstract()[1])
            check_widths([x.shape[0] for x in arrays if x.ndim == 2])  # kernels: inputs come first
        check_whole(self, "population_size", 2)
        check_range(self, "elite_ratio", 0, 1, open_low=True)
        if not 1 <= int(self.elite_ratio * self.population_size) < self.population_size:
            raise ConfigError(
                f"PretrainConfig.elite_ratio is {self.elite_ratio} of a population_size of "
                f"{self.population_size}; expected at least one elite and one child."
            )
        self._check_tasks()
        check_range(self, "std_init", 0, open_low=True)
        check_range(self, "std_final", 0, open_low=True)
        check_whole(self, "restart_after", 0)
        check_whole(self, "pairs_per_generation", 2 * len(self.class_counts))
        if any(self.slope.weights()) and self.slope.pairs > self.pairs_per_generation:
            raise ConfigError(
                f"PretrainConfig.slope.pairs is {self.slope.pairs} with pairs_per_generation "
                f"{self.pairs_per_generation}; expected no more."
            )
        check_whole(self, "num_opponents", 1, self.pairs_per_generation - 1)
        check_whole(self, "generations", 1)
        check_whole(self, "generations_per_chunk", 1)
        check_whole(self, "held_out_pairs", 2)
        check_whole(self, "networks_at_a_time", 1)
        check_whole(self, "pairs_at_a_time", 1)
        check_whole(self, "keep_checkpoints", 1)
        check_whole(self, "seed", 0, MAX_SEED)

    def architecture(self) -> Architecture:
        """The structure of the loss networks."""
        num_classes = self.class_counts[0] if self.network == "pair" else None
        return Architecture(self.network, tuple(self.hidden), self.activation, num_classes)

    def _check_tasks(self) -> None:
        check_range(self, "task_weight", 0)
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

    def _check_fit_of_strategy(self) -> None:
        if not is_built_in(self.strategy):
            return  # a user's own may use any field
        for field in dataclasses.fields(self):
            served = _ONLY_FOR.get(field.name, (self.strategy,))
            if self.strategy not in served and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"PretrainConfig.{field.name} is {getattr(self, field.name)!r} with strategy "
                    f"{self.strategy!r}, which does not use it; use {' or '.join(served)}, or "
                    f"leave {field.name} at {field.default!r}."
                )
        if self.strategy in WITHOUT_STD and self.std_init != PretrainConfig.std_init:
            raise ConfigError(
                f"PretrainConfig.std_init is {self.std_init} with strategy {self.strategy!r}, "
                f"which has no such step size; leave it at {PretrainConfig.std_init}."
            )
        if self.step_size not in SCHEDULES[1:] and self.std_final != PretrainConfig.std_final:
            raise ConfigError(
                f"PretrainConfig.std_final is {self.std_final} with step_size {self.step_size!r}, "
                f"which has no last value; use {' or '.join(SCHEDULES[1:])}."
            )
        has_rule = self.strategy == "ChaoticES"
        if (self.step_size in STEP_SIZE_RULES and not has_rule) or (
            self.step_size in SCHEDULES and not takes_schedule(self.strategy)
        ):
            raise ConfigError(
                f"PretrainConfig.step_size is {self.step_size!r} with strategy {self.strategy!r}, "
                "which changes its step size in its own way; use auto, or ChaoticES."
            )
