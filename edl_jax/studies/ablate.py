"""Ablate the evolution: any fields of `PretrainConfig`, in all combinations, over many seeds."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from edl_jax.checked import Checked, check_seeds, config_or_default
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError
from edl_jax.evolution.config import PretrainConfig, own_parts
from edl_jax.runs.folder import as_json
from edl_jax.runs.storage import user_path
from edl_jax.strategies import MUTATIONS
from edl_jax.studies.figures import check_libraries, plot_curves
from edl_jax.studies.grid import Grid, check_grid, points, with_fields
from edl_jax.studies.statistics import METHOD, holm, rank_correlation
from edl_jax.studies.sweep import Row, sweeps_of
from edl_jax.studies.tables import Contrasts, Frame, Study, contrast, frame, other_settings, summary
from edl_jax.studies.trainings import measure_training
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
# Each value asks for margins, or draws pairs, of its own: what is missed cannot be compared.
_OWN_OBJECTIVE = ("pretrain.severity", "pretrain.margin", "pretrain.class_counts")
FINAL, AREA, ACCURACY = "violated_margins", "area", "accuracy"
RANKING = (FINAL, "pairwise_accuracy", "kendall_tau", "spearman_rho")
GRADIENT = ("descent_rate", "gradient_ratio/0.0-0.1", "gradient_ratio/0.9-1.0")


@dataclasses.dataclass(frozen=True)
class AblateConfig(Checked):
    """Which settings of the evolution are compared, and over how many seeds.

    All combinations are evolved from the same seeds, on the same pairs and from the same fresh
    networks as far as their numbers are the same. Differences are therefore paired by seed.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    grid: Grid = dataclasses.field(default_factory=lambda: {MUTATION: tuple(MUTATIONS)})
    """Settings that are compared, in all combinations: values of fields by the name of their flag,
    such as pretrain.strategy.mutation=logistic,gaussian pretrain.hidden=[16,16],[64]; with
    `downstream` also of train, such as train.learning_rate=0.05,0.1."""
    num_seeds: Annotated[int, Ge(2)] = 30
    """Evolutions of each combination, with the seeds pretrain.seed, pretrain.seed + 1, ..."""
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
    """Also train a classifier with each evolved loss, and correlate the metrics of pretraining with
    its accuracy. A grid over pretrain.generations gives losses from bad to good."""
    train: TrainConfig = TrainConfig(
        data=DataConfig(name="digits", val_examples=360), batch_size=64, learning_rate=0.05
    )
    """How a classifier is trained with each; accuracies are of the validation images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_grid(self, "pretrain.seed", "train.loss")
        check_seeds(self, "num_seeds", self.pretrain.seed)
        if self.downstream and not self.train.data.val_examples:
            raise ConfigError(
                "AblateConfig.train.data.val_examples is 0; expected some images to measure "
                "accuracy on, as test images are not for choosing what predicts it."
            )
        served = ("pretrain.", "train.") if self.downstream else ("pretrain.",)
        if not all(name.startswith(served) for name in self.grid):
            raise ConfigError(
                f"AblateConfig.grid has {', '.join(self.grid)}; expected fields of pretrain, such "
                "as pretrain.mutation, or with downstream trainings also of train."
            )
        for point in points(self.grid):  # refuses names and sizes that cannot work
            with_fields(self.base(), point)

    def base(self) -> "Cell":
        """The cell that the grid's values change."""
        return Cell(self.pretrain, self.train, self.downstream)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evolution, and the training with its loss."""

    pretrain: PretrainConfig
    train: TrainConfig
    downstream: bool

    def run(self) -> Row:
        """Evolve, measure on held-out pairs, and train.

        Returns:
          The metrics of `PretrainResult.metrics`, over all pairs (those of the gradient of the
          middle class count); `curve`, the `violated_margins` of the best on held-out pairs after
          each chunk of generations, and `area`, their mean; with downstream trainings what
          `measure_training` gives.
        """
        result = _evolved(self.pretrain, str(own_parts(self.pretrain)))
        counts = self.pretrain.class_counts
        prefix = f"{counts[len(counts) // 2]} classes: "
        metrics = {name: result.metrics.get(name) for name in RANKING}
        metrics |= {name: result.metrics.get(prefix + name) for name in GRADIENT}
        curve = result.held_out[FINAL]
        row = {
            **metrics,
            AREA: float(curve.mean()),
            "curve": [x if np.isfinite(x) else None for x in curve.tolist()],
        }
        if self.downstream:
            row |= measure_training(self.train, test=False, loss=result.loss)
        return row


@functools.lru_cache(maxsize=1)  # combinations of training settings share one
def _evolved(config: PretrainConfig, parts: str) -> Any:
    """A `PretrainResult`, by the configuration and what the user's own parts are (may change)."""
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    del parts
    return pretrain(config)


def ablate(
    config: AblateConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    progress: bool = False,
) -> Study:
    """Evolve every combination of a grid over all seeds, and compare.

    Args:
      config: what to compare; the defaults if None.
      run_dir: where cells are kept as they finish, and where the table and figures go; a cell
        found there is not run again. Nothing is written by default.
      executor: where evolutions run; see `sweep`.
      progress: whether to show progress bars.

    Raises:
      ConfigError, DataError: if a strategy refuses the configuration, or the data cannot be used.
      RunFolderError: if `run_dir` holds another ablation, is in use by another run, is damaged, or
        cannot be read or written.
      EDLError: if a library that studies need is missing, or as `sweep`.
    """
    config = config_or_default(config, AblateConfig)
    run_dir = None if run_dir is None else user_path(run_dir)
    check_libraries("pandas", "statsmodels")
    _evolved.cache_clear()  # the code of the user's own parts may have changed
    identity: dict[str, Any] = {"ablate": as_json(config)}
    cells = [with_fields(config.base(), point) for point in points(config.grid)]
    if parts := own_parts(*(cell.pretrain for cell in cells)):
        identity["parts"] = parts
    if config.downstream:
        identity["data"] = [data.identity for data in _datasets(cells).values()]
    with sweeps_of(run_dir, identity, executor, progress) as (run, folder):
        seeds = range(config.pretrain.seed, config.pretrain.seed + config.num_seeds)
        options = {"seed_field": "pretrain.seed", "measures": (FINAL, AREA)}
        rows = run(config.base(), config.grid, seeds, Cell.run, **options)
        return _study(config, rows).written(folder)


def _datasets(cells: Sequence[Cell]) -> dict[str, Any]:
    """The data sets of the downstream trainings, which the losses have to serve."""
    found = {}
    for cell in cells:
        data, served = load_dataset(cell.train.data), cell.pretrain.class_counts
        if cell.pretrain.network == "pair" and data.num_classes != served[0]:
            raise ConfigError(
                f"AblateConfig.pretrain.class_counts is {served} with network 'pair', and "
                f"{data.name} has {data.num_classes} classes; expected ({data.num_classes},)."
            )
        found[data.digest] = data
    return found


def contrasts(cells: Frame, grid: Sequence[str]) -> Contrasts:
    """What is compared along each axis: `MUTATION_CONTRASTS`, else each value with the first."""
    found = {}
    for axis in grid:
        first, *others = dict.fromkeys(cells[axis])
        found[axis] = [(value, first) for value in others]
    if MUTATION in found:
        found[MUTATION] = MUTATION_CONTRASTS
    return found


def _study(config: AblateConfig, rows: list[Row]) -> Study:
    by = list(config.grid)
    cells = frame(rows, by)
    measures = [FINAL, AREA, "pairwise_accuracy"]
    if config.downstream:
        cells[ACCURACY] = 100 * cells[ACCURACY].astype(float)
        measures.append(ACCURACY)
    title = "Each combination over its seeds (violated margins: lower is better)"
    tables = {title: summary(cells, by, measures)}
    pairs = contrasts(cells, by)
    ranked = {axis: found for axis, found in pairs.items() if axis not in _OWN_OBJECTIVE}
    asked = {FINAL: ranked, AREA: ranked} | ({ACCURACY: pairs} if config.downstream else {})
    tests = contrast(cells, by, asked)
    if len(tests):
        tables["Differences, paired by seed"] = tests
    line, others = (by[0], by[1:]) if by else ("seed", [])
    drawn = plot_curves(cells, line, others, "curve", "chunk of generations", FINAL)
    caption = "Share of margins violated by the best on held-out pairs, mean over the seeds."
    figures = {"curves": (caption, drawn)}
    if config.downstream:
        tables["Rank correlations with validation accuracy"] = correlations(cells)
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
        notes.append(f"Trainings, accuracy on validation images. {other_settings(config.train)}")
    return Study("Ablation of the evolution", notes, tables, figures, rows)


def correlations(cells: Frame) -> Frame:
    """Spearman's rank correlation of each metric of pretraining with accuracy, over all cells."""
    import pandas as pd

    rows = []
    for name in (*RANKING, *GRADIENT):
        pair = cells[[name, ACCURACY]].astype(float).dropna()
        found = rank_correlation(pair[name].to_numpy(), pair[ACCURACY].to_numpy())
        rows.append({"metric": name, "n": len(pair), "spearman": found.value})
        rows[-1] |= {"low": found.low, "high": found.high, "p": found.p}
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"].to_numpy()))
