"""Compare losses: train with each over the same seeds, each at its own best learning rate."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

from edl_jax.checked import Checked, Count, Distinct
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import LOSSES
from edl_jax.losses.by_name import check_loss_name, scale_of
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import Row, own_parts
from edl_jax.studies.cells import Cell, kept
from edl_jax.studies.executors import jsonable, open_executor
from edl_jax.studies.figures import plot_curves, short_names
from edl_jax.studies.searches import with_found_losses
from edl_jax.studies.statistics import METHOD
from edl_jax.studies.sweep import (
    Grid,
    asked,
    check_grid,
    points,
    study_folder,
    sweep,
    with_fields,
)
from edl_jax.studies.tables import Frame, Study, contrast, frame, other_settings, summary
from edl_jax.training import TrainConfig
from edl_jax.training.metrics import MEASURES
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
    methods: Annotated[tuple[str, ...], Distinct()] = ()
    """Learned losses to compare, after the others: names listed by `edl methods`, with options if
    needed, such as elf(generations=5)."""
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
        for name in (*self.losses, *self.methods):
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
        listed = [static if name == STATIC else [name] for name in (*self.losses, *self.methods)]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(listed)))


def compare(
    config: CompareConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    executor: Executor | str | int | None = None,
    progress: bool = False,
) -> Study:
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
    config, run_dir = asked(config, CompareConfig, run_dir)
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

    with (
        study_folder(run_dir, identity) as folder,
        open_executor(executor) as pool,
        contextlib.ExitStack() as stack,
    ):
        cells, searches = with_found_losses(stack, base, cells, LOSS, folder, progress=progress)
        options = {"seed_field": "train.seed", "folder": folder, "progress": progress}
        run = functools.partial(sweep, run=Cell.run, executor=pool or 1, **options)
        best, tuned = _tuned(config, base, cells, run) if config.learning_rates else (cells, [])
        seeds = range(config.train.seed, config.train.seed + config.num_seeds)
        rows = run(base, best, seeds)
        return _study(config, data.values(), rows, tuned, searches).written(folder)


def _tuned(
    config: CompareConfig, base: Cell, cells: Sequence[Any], run: Callable[..., list[Row]]
) -> tuple[Sequence[Any], list[Row]]:
    """Each cell with its best learning rate, and all rows that were looked at."""
    rows, tried, first = [], [], config.train.seed + config.num_seeds
    seeds = range(first, first + config.tuning_seeds)
    wanted = [{**cell, RATE: rate} for cell in cells for rate in config.learning_rates]
    for _ in range(1 + MAX_EXTENSIONS):
        rows += run(dataclasses.replace(base, split="val"), wanted, seeds)
        tried = [[row for row in rows if jsonable(cell).items() <= row.items()] for cell in cells]
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
    config: CompareConfig,
    data: Iterable[Dataset],
    compared: list[Row],
    tuned: list[Row],
    searches: list[Row],
) -> Study:
    by, last = [*config.grid, LOSS], config.train.seed + config.num_seeds - 1
    split, names = {"test": "Test", "val": "Validation"}, short_names(config.loss_names())
    names |= {row["found"]: names[row[LOSS]] for row in searches}
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
    if searches:
        import pandas as pd

        tables["What was searched for"] = pd.DataFrame(searches)
        notes.append(
            "A search is run once for a setting, at train.learning_rate; what it found is then a "
            "loss like the others. Its validation images are those of the learning rates."
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
