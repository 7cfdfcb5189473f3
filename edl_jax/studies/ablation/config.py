"""The configuration of an ablation of the evolution."""

import dataclasses
import itertools
from typing import Any

import tyro

from edl_jax.errors import ConfigError
from edl_jax.evolution import PretrainConfig
from edl_jax.strategies import MUTATIONS
from edl_jax.studies.ablation.axes import AXES, Axis, Cell
from edl_jax.training import TrainConfig
from edl_jax.validation import check_different, check_seed_count, check_types, check_wholes


@dataclasses.dataclass(frozen=True)
class AblateConfig:
    """Which settings of the evolution are compared, and over how many seeds. Checked when made.

    Every combination of what is compared is a cell, and all cells are evolved from the same seeds:
    the same fresh networks, as far as the population sizes are the same, and the same pairs, as far
    as their numbers are. Differences are therefore paired by seed.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    mutations: tuple[str, ...] = tuple(MUTATIONS)
    """Mutations to compare, of edl_jax.MUTATIONS; none given: pretrain.mutation."""
    severities: tuple[str, ...] = ()
    """Severities to compare, of edl_jax.SEVERITIES; none given: pretrain.severity."""
    selections: tuple[str, ...] = ()
    """Selections to compare, plus and comma; none given: pretrain.selection."""
    population_sizes: tuple[int, ...] = ()
    """Population sizes to compare; none given: pretrain.population_size."""
    strategies: tuple[str, ...] = ()
    """Strategies to compare, as pretrain.strategy; none given: that one. Those without a mutation
    or selection of ours need the default of it alone."""
    networks: tuple[str, ...] = ()
    """Networks to compare, as pretrain.network; none given: that one."""
    hidden_layers: tyro.conf.UseAppendAction[tuple[tuple[int, ...], ...]] = ()
    """Widths of hidden layers to compare, ((16, 16), (64,)), say; none given: pretrain.hidden.
    On the command line the flag is given once for each, and adds to those of a config file."""
    class_count_sets: tyro.conf.UseAppendAction[tuple[tuple[int, ...], ...]] = ()
    """Class counts to compare, ((2,), (10,)), say; none given: pretrain.class_counts. Given as
    hidden_layers is."""
    elite_ratios: tuple[float, ...] = ()
    """Shares of elites to compare; none given: pretrain.elite_ratio."""
    step_sizes: tuple[str, ...] = ()
    """Rules of the step size to compare, as pretrain.step_size; none given: that one."""
    std_inits: tuple[float, ...] = ()
    """First step sizes to compare; none given: pretrain.std_init."""
    pair_numbers: tuple[int, ...] = ()
    """Pairs of a generation to compare, of which few make a noisy fitness; none given:
    pretrain.pairs_per_generation."""
    num_seeds: int = 30
    """Evolutions of each cell, with the seeds pretrain.seed, pretrain.seed + 1, ..."""
    thresholds: tuple[float, ...] = (0.7, 0.5, 0.4)
    """Values of the objective (0: perfect, 1: a constant loss) until which generations are counted,
    on held-out pairs."""
    pretrain: PretrainConfig = PretrainConfig(
        network="pair",
        class_counts=(10,),
        population_size=64,
        pairs_per_generation=1024,
        generations=300,
        held_out_pairs=8192,
    )
    """All other settings of the evolution. With the class-agnostic network, which reads -log p_y,
    evolution has little left to do."""
    downstream_losses: int = 0
    """So many losses from bad to good (24 or more say something) are trained with, to see how the
    metrics of pretraining map to accuracy; 0: none."""
    downstream_generations: tuple[int, ...] = (0, 2, 5, 10, 30, 100, 300)
    """After how many generations an evolution's leader is taken as a loss to train with; 0: a fresh
    network. Each loss is of a seed of its own; these numbers take turns, and after each round of
    them the severities."""
    train: TrainConfig = TrainConfig(
        dataset="digits", val_examples=360, batch_size=64, learning_rate=0.05
    )
    """How a classifier is trained with each of them; accuracies are of the validation images."""

    def __post_init__(self) -> None:
        check_types(self)
        for axis in AXES:
            check_different(self, axis.given)
        check_seed_count(self, "num_seeds", self.pretrain.seed, low=2)
        if not self.thresholds or not all(0 < x < 1 for x in self.thresholds):
            raise ConfigError(
                f"AblateConfig.thresholds is {self.thresholds!r}; expected values of the objective "
                "between 0 (perfect) and 1 (a constant loss)."
            )
        names = [f"{threshold:g}" for threshold in self.thresholds]  # as rows and tables name them
        if len(set(names)) != len(names):
            raise ConfigError(
                f"AblateConfig.thresholds is {self.thresholds!r}; expected values that differ in "
                "their first six digits."
            )
        for cell in self.cells():
            self.config_of(cell)  # refuses names and sizes that cannot work
        self._check_downstream()

    def cells(self) -> list[Cell]:
        """Every combination."""

        def values(axis: Axis) -> tuple[Any, ...]:
            is_optional = axis.field in Cell._field_defaults
            unless_given = None if is_optional else getattr(self.pretrain, axis.field)
            return getattr(self, axis.given) or (unless_given,)

        return [Cell(*combination) for combination in itertools.product(*map(values, AXES))]

    def config_of(self, cell: Cell) -> PretrainConfig:
        """The configuration that a cell is evolved with."""
        return dataclasses.replace(self.pretrain, **cell.compared())

    def _check_downstream(self) -> None:
        check_seed_count(self, "downstream_losses", self.pretrain.seed, low=0)
        check_wholes(self, "downstream_generations", 0)
        if not self.downstream_losses:
            return
        if self.downstream_losses < 3:
            raise ConfigError(
                f"AblateConfig.downstream_losses is {self.downstream_losses}; expected 0, or at "
                "least 3 to correlate anything."
            )
        stops, generations = self.downstream_generations, self.pretrain.generations
        if not stops or len(set(stops)) != len(stops) or max(stops) > generations:
            raise ConfigError(
                f"AblateConfig.downstream_generations is {stops}; expected different numbers of at "
                f"most the {generations} generations of pretrain.generations."
            )
        if not self.train.val_examples:
            raise ConfigError(
                "AblateConfig.train.val_examples is 0; expected some images to measure accuracy "
                "on, as test images are not for choosing what predicts it."
            )
