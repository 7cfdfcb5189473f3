"""Compare losses: train with each over the same seeds, each at its own best learning rate."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

from edl_jax.checked import Checked, Count, Distinct
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.errors import ConfigError
from edl_jax.evolution import PretrainConfig
from edl_jax.losses import LOSSES
from edl_jax.losses.by_name import check_loss_name, scale_of
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import Row, locked, own_parts, writing
from edl_jax.studies.cells import MEASURES, Cell, kept
from edl_jax.studies.figures import plot_curves, plot_evolution, save, short_names
from edl_jax.studies.shape import plot_loss
from edl_jax.studies.statistics import METHOD
from edl_jax.studies.sweep import (
    Grid,
    Plan,
    as_study,
    asked,
    check_grid,
    plain,
    points,
    with_fields,
)
from edl_jax.studies.tables import Frame, Study, contrast, frame, other_settings, summary
from edl_jax.training import TrainConfig
from edl_jax.training.training import resolve_config_loss

STATIC = "static"
LOSS, RATE = "train.loss", "train.learning_rate"
MAX_EXTENSIONS = 4  # rates that may be tried beyond the grid


@dataclasses.dataclass(frozen=True)
class CompareConfig(Checked):
    """Which losses to compare, and how.

    All but the loss, and its learning rate where one is looked for, is the same: differences are
    paired by seed, which sets initial weights, data order and augmentation.
    """

    losses: Annotated[tuple[str, ...], MinLen(1), Distinct()] = ("cross_entropy", "edl")
    """Losses to compare, each named as in TrainConfig.loss; the first one is the reference.
    `static` stands for all losses that work with a linear head and have no parameters of their
    own."""
    grid: Grid = dataclasses.field(default_factory=dict)
    """Settings to compare the losses in, in all combinations. Give the values of each field by its
    flag name, such as train.model=resnet8,resnet20 train.data.noise_rate=0,0.4."""
    num_seeds: Count = 5
    """Number of training runs per loss and setting, with the seeds train.seed, train.seed + 1,
    ..."""
    learning_rates: Annotated[tuple[float, ...], Distinct()] = ()
    """Learning rates to try. Each loss uses its best one by accuracy on validation images (needs
    train.data.val_examples); if that is the first or last, rates beyond it are tried too. None:
    train.learning_rate."""
    tuning_seeds: Count = 1
    """Number of training runs at each of `learning_rates`; their seeds follow those of the
    comparison."""
    split: Literal["test", "val"] = "test"
    """Images to compare the losses on: test, or val (needs train.data.val_examples), which keeps
    the test images unseen."""
    train: TrainConfig = TrainConfig()
    """Settings of every training run; the compared settings replace theirs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.losses:
            check_loss_name(name, STATIC)
        if len(self.learning_rates) == 1:
            raise ConfigError(
                f"CompareConfig.learning_rates is {self.learning_rates}; expected two or more "
                "rates, or none."
            )
        last = self.train.seed + self.num_seeds - 1
        fixed = {LOSS: self.loss_names(), "train.seed": [last], "split": [self.split]}
        if self.learning_rates:
            fixed |= {RATE: self.learning_rates, "split": [self.split, "val"]}
            fixed["train.seed"] = [last + self.tuning_seeds]
        check_grid(self, Cell(train=self.train, split="test"), fixed)

    def loss_names(self) -> tuple[str, ...]:
        """The losses, each once, with all that `static` stands for."""
        static = [x for x, part in LOSSES.items() if not (isinstance(part, type) or scale_of(x))]
        listed = [static if name == STATIC else [name] for name in self.losses]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(listed)))


@as_study(CompareConfig, "train.seed")
def compare(config: CompareConfig) -> Plan:
    """Train with every loss over every seed and compare accuracies after the last epoch.

    Args:
      config: what to compare; the defaults if None.
      run_dir: where cells, tables, figures and README.md are kept; a cell found there is not run
        again. Nothing is written by default.
      executor: where trainings run; see `sweep`.
      progress: whether to show progress bars.

    Raises:
      EDLError: naming what cannot be used: a field, the data, a loss, the run folder or a library.
    """
    kept.cache_clear()  # the code of the user's own losses may have changed
    base, data, losses, parts = Cell(train=config.train, split=config.split), {}, {}, {}
    cells = points({**config.grid, LOSS: config.loss_names()})
    for cell in cells:  # here, so that a data set is prepared once
        train: Any = with_fields(base, cell).train
        dataset = load_dataset(train.data)
        data[dataset.digest] = dataset
        losses.setdefault(train.loss, describe(resolve_config_loss(train, dataset)))
        parts |= own_parts(train)
    identity = {"compare": config, "losses": losses, **parts}
    identity["data"] = [dataset.identity for dataset in data.values()]

    def find(sweep: Callable[..., list[Row]]) -> Study:
        best, tuned = _tuned(config, base, cells, sweep) if config.learning_rates else (cells, [])
        return _study(config, data.values(), sweep(base, best, run=Cell.run), tuned)

    return identity, find


def _tuned(
    config: CompareConfig, base: Cell, cells: Sequence[Any], sweep: Callable[..., list[Row]]
) -> tuple[Sequence[Any], list[Row]]:
    """Each cell with its best learning rate, and all rows that were looked at."""
    rows, tried, first = [], [], config.train.seed + config.num_seeds
    options = {"seeds": range(first, first + config.tuning_seeds), "run": Cell.run}
    wanted = [{**cell, RATE: rate} for cell in cells for rate in config.learning_rates]
    for _ in range(1 + MAX_EXTENSIONS):
        rows += sweep(dataclasses.replace(base, split="val"), wanted, **options)
        tried = [[row for row in rows if plain(cell).items() <= row.items()] for cell in cells]
        beyond = zip(cells, map(next_rates, tried), strict=True)
        wanted = [{**cell, RATE: rate} for cell, rates in beyond for rate in rates]
        if not wanted:
            break
    best = [{**cell, RATE: best_rate(of_cell)} for cell, of_cell in zip(cells, tried, strict=True)]
    return best, list(itertools.chain.from_iterable(tried))


def best_rate(rows: Sequence[Row]) -> float:
    """The learning rate of the best mean accuracy; of equals, the one tried first."""
    by_rate: dict[float, list[float]] = {}
    for row in rows:  # a training that failed counts as 0
        by_rate.setdefault(row[RATE], []).append(row.get("accuracy", 0.0))
    return max(by_rate, key=lambda rate: np.mean(by_rate[rate]))


def next_rates(rows: Sequence[Row]) -> list[float]:
    """The rate to try beyond a grid whose best is at an end, and did not diverge at the upper."""
    best, rates = best_rate(rows), sorted({row[RATE] for row in rows})
    beyond = []
    if best == rates[0]:
        beyond = [rates[0] * rates[0] / rates[1]]
    elif best == rates[-1] and not any(row.get("diverged") for row in rows if row[RATE] == best):
        beyond = [rates[-1] * rates[-1] / rates[-2]]
    return [float(f"{rate:.6g}") for rate in beyond]  # 0.05, not 0.0500...01


def _study(
    config: CompareConfig, data: Iterable[Dataset], compared: list[Row], tuned: list[Row]
) -> Study:
    by, last = [*config.grid, LOSS], config.train.seed + config.num_seeds - 1
    split, names = {"test": "Test", "val": "Validation"}, short_names(config.loss_names())
    for row in (*compared, *tuned):
        row[LOSS] = names[row[LOSS]]
    cells = frame(compared, by)
    title = f"{split[config.split]} accuracy, %, after the last epoch"
    reference, *_ = names.values()
    tables = {title: comparison_table(cells, by, reference)}
    drawn = plot_curves(cells, LOSS, by[:-1], "epochs", "epoch", "accuracy, share")
    figures = {"accuracy": ("Accuracy after each epoch, mean over the seeds.", drawn)}
    notes = [
        f"Data: {'; '.join(dataset.source for dataset in data)}.",
        f"Seeds {config.train.seed} to {last}, the same for all losses: differences are paired.",
        "A training that diverged counts with the accuracy of guessing, and in no other metric.",
        METHOD,
        other_settings(config.train, but=["loss"]),
    ]
    if reference not in {*cells[LOSS]}:
        notes.append(f"Nothing is compared: each training with {reference}, the reference, failed.")
    if tuned:
        rates = summary(frame(tuned, by), [*by, RATE], ["accuracy"])
        tables["Learning rates on validation images"] = rates
        notes.append(
            f"Learning rates: the best by mean validation accuracy over {config.tuning_seeds} "
            "seeds that the comparison does not use. No test image was looked at for it."
        )
    return Study("Comparison of losses", notes, tables, figures, [*compared, *tuned])


def comparison_table(cells: Frame, by: list[str], reference: str) -> Frame:
    """Each loss in each setting, and its difference to the reference there, with a verdict."""
    table = summary(cells, [*by, RATE] if RATE in cells else by, ["accuracy"])
    table["diverged"] = cells.groupby(by, sort=False, dropna=False)["diverged"].sum().to_numpy()
    pairs = [(name, reference) for name in cells[LOSS].unique() if name != reference]
    tests = contrast(cells, by, [("accuracy", LOSS, pairs)])
    if len(tests):
        tests = tests.drop(columns=["axis", "baseline", "measure", "n"])
        table = table.merge(tests.rename(columns={"value": LOSS}), on=by, how="left")
    return table.merge(summary(cells, by, MEASURES[1:]).drop(columns="n"), on=by)


@dataclasses.dataclass(frozen=True)
class DemoConfig(Checked):
    """Settings of the demo."""

    data_dir: str | None = None
    """TFDS directory that contains CIFAR-10; default: TFDS's own directory, otherwise a download,
    otherwise digits."""
    num_seeds: Count = 3
    """Number of training runs per loss."""
    pretrain: PretrainConfig = PretrainConfig()
    """How the loss is evolved."""


def demo(
    config: DemoConfig,
    run_dir: str | os.PathLike[str],
    *,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Any, Study]:
    """Evolve a loss, train with cross-entropy and with it, and plot both; sized for two CPU cores.

    `say` is called with a line about each stage as it begins. On SIGTERM the same call resumes.
    Returns the `PretrainResult` and the comparison.
    """
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    folder: Any
    config, folder = asked(config, DemoConfig, run_dir)
    with locked(folder):
        # Before the evolution: a missing data set should not cost a minute of it.
        few = DataConfig(data_dir=config.data_dir, train_examples=1, test_examples=1)
        data = load_dataset(few)
        losses = ("cross_entropy", str(folder / "evolved.safetensors"))
        train = _small_training(data.name, config.data_dir)
        comparison = CompareConfig(losses=losses, num_seeds=config.num_seeds, train=train)
        say(f"Data: {data.source}.\nEvolving a loss on synthetic pairs ...")
        evolved = pretrain(config.pretrain, run_dir=folder / "pretrain", progress=progress)
        with writing("the loss and its figures", folder):
            evolved.loss.save(losses[1])
            save(plot_evolution(evolved.history, evolved.held_out), folder / "evolution.png")
            save(plot_loss({"evolved": evolved.loss}), folder / "loss.png")
        say(f"Training with cross-entropy and the evolved loss, {config.num_seeds} seeds each ...")
        return evolved, compare(comparison, run_dir=folder / "compare", progress=progress)


def _small_training(dataset: str, data_dir: str | None) -> TrainConfig:
    """About half a minute on two cores with CIFAR-10, a few seconds with digits."""
    if dataset == "digits":
        return TrainConfig(data=DataConfig(name="digits"), epochs=10, batch_size=64)
    data = DataConfig(name=dataset, data_dir=data_dir, train_examples=5000, test_examples=2000)
    return TrainConfig(data=data, epochs=4)
