"""Ablate the evolution: any fields of `PretrainConfig`, in all combinations, over many seeds."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Annotated, Any, get_args

from annotated_types import Ge

from edl_jax.checked import Checked, hints
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError
from edl_jax.evolution.config import OBJECTIVE, PretrainConfig
from edl_jax.runs.folder import Row, own_parts
from edl_jax.strategies import MUTATIONS
from edl_jax.studies.cells import AREA, FINAL, GRADIENT, RANKING, Cell
from edl_jax.studies.figures import plot_curves
from edl_jax.studies.statistics import METHOD, holm, rank_correlation
from edl_jax.studies.sweep import (
    Grid,
    asked,
    check_grid,
    points,
    study_folder,
    sweep,
    with_fields,
)
from edl_jax.studies.tables import Frame, Study, Versus, contrast, frame, other_settings, summary
from edl_jax.training import TrainConfig

MUTATION = "pretrain.strategy.mutation"
# Which mutation is compared with which. The controls tell apart what chaos brings: an orbit instead
# of independent draws (the dynamics, of the same marginal), and the distribution of its values (the
# marginal, of independent draws).
MUTATION_CONTRASTS = (
    ("logistic", "gaussian"),  # chaos
    ("logistic", "arcsine"),  # the dynamics
    ("logistic_gaussian", "gaussian"),  # the dynamics
    ("arcsine", "gaussian"),  # the marginal
    ("uniform", "gaussian"),  # the marginal
)
ACCURACY = "accuracy"


@dataclasses.dataclass(frozen=True)
class AblateConfig(Checked):
    """Which evolution settings to compare, and over how many seeds.

    All are evolved on the same pairs, and from the same networks as far as their numbers are the
    same: differences are paired by seed.
    """

    grid: Grid = dataclasses.field(default_factory=lambda: {MUTATION: tuple(MUTATIONS)})
    """Settings to compare, in all combinations. Give the values of each field by its flag name,
    such as pretrain.strategy.mutation=logistic,gaussian pretrain.hidden=[16,16],[64]; with
    `downstream`, train fields too, such as train.learning_rate=0.05,0.1."""
    num_seeds: Annotated[int, Ge(2)] = 30
    """Number of evolutions per combination, with the seeds pretrain.seed, pretrain.seed + 1, ..."""
    pretrain: PretrainConfig = PretrainConfig(
        network="pair",
        class_counts=(10,),
        population_size=64,
        pairs_per_generation=1024,
        generations=300,
        generations_per_chunk=10,
        held_out_pairs=8192,
    )
    """All other settings of the evolution. With the class-agnostic network, which reads -log p_y,
    evolution has little left to do."""
    downstream: bool = False
    """Also train a classifier with each evolved loss, and correlate the pretraining metrics with
    its accuracy. A grid over pretrain.generations gives losses from bad to good."""
    train: TrainConfig = TrainConfig(
        data=DataConfig(name="digits", val_examples=360), batch_size=64, learning_rate=0.05
    )
    """Settings for training a classifier with each loss; accuracy is measured on the validation
    images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.pretrain.seed + self.num_seeds - 1
        fixed: dict[str, Any] = {"pretrain.seed": [last], "split": ["val"]}
        fixed |= {"train.loss": [self.train.loss]} if self.downstream else {}
        check_grid(self, self.base(), fixed)

    def base(self) -> Cell:
        """The cell that the grid's values change."""
        return Cell(self.pretrain, self.train if self.downstream else None)


def ablate(
    config: AblateConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    executor: Executor | str | int | None = None,
    progress: bool = False,
) -> Study:
    """Evolve every combination of a grid over all seeds, and compare.

    The arguments, and what is raised, are those of `compare`.
    """
    config, run_dir = asked(config, AblateConfig, run_dir)
    cells: Any = [with_fields(config.base(), point) for point in points(config.grid)]
    datasets = {}
    for cell in cells if config.downstream else ():
        data, served = load_dataset(cell.train.data), cell.pretrain.class_counts
        datasets[data.digest] = data.identity
        if cell.pretrain.network == "pair" and data.num_classes != served[0]:
            raise ConfigError(
                f"AblateConfig.pretrain.class_counts is {served} with network 'pair', and "
                f"{data.name} has {data.num_classes} classes; expected ({data.num_classes},)."
            )
    identity = {"ablate": config, "parts": own_parts(*cells)}
    identity["data"] = list(datasets.values())
    first = config.pretrain.seed
    seeds = range(first, first + config.num_seeds)
    with study_folder(run_dir, identity) as folder:
        options = {"seed_field": "pretrain.seed", "folder": folder, "progress": progress}
        rows = sweep(config.base(), config.grid, seeds, Cell.run, executor, **options)
        return _study(config, rows).written(folder)


def contrasts(cells: Frame, grid: Sequence[str]) -> dict[str, Versus]:
    """What is compared along each axis: `MUTATION_CONTRASTS`, else each value with the first."""
    pairs: dict[str, Versus] = {}
    for axis in grid:
        first, *others = cells[axis].unique()
        pairs[axis] = [(value, first) for value in others]
    known = [pair for pair in MUTATION_CONTRASTS if {*pair} <= {*cells.get(MUTATION, ())}]
    return pairs | ({MUTATION: known} if known else {})


def is_of_objective(axis: str) -> bool:
    """Whether each value asks for margins of its own, so that what is missed cannot be compared."""
    config, field, *_ = axis.split(".")
    return config == "pretrain" and OBJECTIVE in get_args(hints(PretrainConfig)[field])


def _study(config: AblateConfig, rows: list[Row]) -> Study:
    by = list(config.grid)
    cells = frame(rows, by)
    pairs = contrasts(cells, by)
    ranked = [axis for axis in by if not is_of_objective(axis)]
    wanted = [(name, axis, pairs[axis]) for name in (FINAL, AREA) for axis in ranked]
    measures = [FINAL, AREA, "pairwise_accuracy"]
    notes = [
        f"Evolutions on synthetic pairs alone, seeds {config.pretrain.seed} to "
        f"{config.pretrain.seed + config.num_seeds - 1}, the same for all combinations.",
        "Violated margins: share of the asked margins that the winner does not keep, on "
        f"{config.pretrain.held_out_pairs} held-out pairs that nothing was chosen on; area: that "
        "of the best so far, mean over the generations.",
        METHOD,
        other_settings(config.pretrain),
    ]
    if config.downstream:
        measures.append(ACCURACY)
        wanted += [(ACCURACY, axis, pairs[axis]) for axis in by]
        notes.append(f"Trainings, accuracy on validation images. {other_settings(config.train)}")
    title = "Each combination over its seeds (violated margins: lower is better)"
    tables = {title: summary(cells, by, measures)}
    if len(tests := contrast(cells, by, wanted)):
        tables["Differences, paired by seed"] = tests
    if config.downstream:
        tables["Rank correlations with validation accuracy"] = correlations(cells)
    line, others = (by[0], by[1:]) if by else ("seed", [])
    drawn = plot_curves(cells, line, others, "curve", "chunk of generations", FINAL)
    caption = "Share of margins violated by the best on held-out pairs, mean over the seeds."
    return Study("Ablation of the evolution", notes, tables, {"curves": (caption, drawn)}, rows)


def correlations(cells: Frame) -> Frame:
    """Spearman's rank correlation of each metric of pretraining with accuracy, over all cells."""
    import pandas as pd

    rows = []
    for name in (*RANKING, *GRADIENT):
        both = cells[[name, ACCURACY]].astype(float).dropna()
        rows.append([name, len(both), *rank_correlation(both[name], both[ACCURACY])])
    table = pd.DataFrame(rows, columns=["metric", "n", "spearman", "low", "high", "p"])
    return table.assign(p=holm(table["p"].to_numpy()))
