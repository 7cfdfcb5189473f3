"""Compare losses: train with each over the same seeds, each at its own best learning rate."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Annotated, Literal

from annotated_types import MinLen

from edl_jax.checked import Checked, Count, Distinct, check_seeds, config_or_default
from edl_jax.data.dataset import Dataset
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import LOSSES, MARGIN_LOSSES
from edl_jax.losses.by_name import check_loss_name, split_loss_name
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import as_json
from edl_jax.runs.storage import user_path
from edl_jax.studies.figures import check_libraries, plot_curves, short_names
from edl_jax.studies.grid import Grid, Point, check_grid, points, with_fields
from edl_jax.studies.statistics import METHOD
from edl_jax.studies.sweep import Row, sweeps_of
from edl_jax.studies.tables import Frame, Study, contrast, frame, other_settings, summary
from edl_jax.studies.trainings import MEASURES, forget_trainers, measure_training
from edl_jax.studies.tuning import MAX_EXTENSIONS, RATE, tune
from edl_jax.training import TrainConfig
from edl_jax.training.training import resolve_config_loss

STATIC = "static"
LOSS, SPLIT = "train.loss", "split"


@dataclasses.dataclass(frozen=True)
class CompareConfig(Checked):
    """Which losses are compared, and how.

    Everything but the loss, and its learning rate where one is looked for, is the same for all:
    recipe, data, seeds (so initial weights, data order and augmentation). The differences are
    therefore paired by seed.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    losses: Annotated[tuple[str, ...], MinLen(1), Distinct()] = ("cross_entropy", "edl")
    """Losses, each named as in TrainConfig.loss; the first is what the others are compared with.
    `static` stands for all losses without parameters of their own that suit a linear head."""
    grid: Grid = dataclasses.field(default_factory=dict)
    """Settings in all combinations of which losses are compared: values of fields by the name of
    their flag, such as train.model=resnet8,resnet20 train.data.noise_rate=0,0.4."""
    num_seeds: Count = 5
    """Trainings of each loss in each setting, with the seeds train.seed, train.seed + 1, ..."""
    learning_rates: Annotated[tuple[float, ...], Distinct()] = ()
    """Every loss takes the best of these learning rates by accuracy on validation images (needs
    train.data.val_examples), or a better one beyond an end of them; none: train.learning_rate."""
    tuning_seeds: Count = 1
    """Trainings at each of `learning_rates`, with the seeds that follow those of the comparison."""
    split: Literal["test", "val"] = "test"
    """Images that losses are compared on: test; or val (which needs train.data.val_examples), to
    choose among losses without a look at the test images."""
    train: TrainConfig = TrainConfig()
    """Settings of every training; what is compared replaces its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.losses:
            check_loss_name(name, STATIC)
        calls = [split_loss_name(name) for name in self.loss_names()]
        if twice := [self.loss_names()[i] for i, call in enumerate(calls) if call in calls[:i]]:
            raise ConfigError(
                f"CompareConfig.losses has {twice[0]!r} twice, in two ways of writing; expected "
                "different losses."
            )
        check_grid(self, LOSS, "train.seed", *([RATE] if self.learning_rates else []))
        check_seeds(self, "num_seeds", self.train.seed)
        if self.learning_rates:
            check_seeds(self, "tuning_seeds", self.train.seed + self.num_seeds)
        if len(self.learning_rates) == 1:
            raise ConfigError(
                f"CompareConfig.learning_rates is {self.learning_rates}; expected two or more to "
                "choose from, or none and this one as train.learning_rate."
            )
        if (self.split == "val" or self.learning_rates) and not self.train.data.val_examples:
            raise ConfigError(
                f"CompareConfig.split is {self.split!r} and learning_rates {self.learning_rates}; "
                "expected train.data.val_examples of more than 0 to compare on or to choose by."
            )
        for setting, loss in itertools.product(points(self.grid), self.loss_names()):
            for rate in self.learning_rates or (None,):  # refuses names and rates that cannot work
                chosen = {LOSS: loss} | ({} if rate is None else {RATE: rate})
                with_fields(Cell(self.train, self.split), {**setting, **chosen})

    def loss_names(self) -> tuple[str, ...]:
        """The losses, each once, with all that `static` stands for."""
        static = [
            name
            for name, part in LOSSES.items()
            if not isinstance(part, type) and name not in MARGIN_LOSSES
        ]
        listed = [static if name == STATIC else [name] for name in self.losses]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(listed)))

    def seeds(self, *, tuning: bool = False) -> range:
        """Seeds of the comparison, or those with which learning rates are chosen."""
        first, middle = self.train.seed, self.train.seed + self.num_seeds
        return range(middle, middle + self.tuning_seeds) if tuning else range(first, middle)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a comparison, and the images that it is measured on: "val" or "test"."""

    train: TrainConfig
    split: str

    def run(self) -> Row:
        """Train and measure."""
        return measure_training(self.train, test=self.split == "test")


def compare(
    config: CompareConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    progress: bool = False,
) -> Study:
    """Train with every loss over every seed and compare accuracies after the last epoch.

    With `learning_rates`, every loss is first trained at each of them, in every setting, from
    seeds of their own, and takes the one with the best accuracy on the validation images. No test
    image is looked at for it. Where a loss's best rate is at an end of its grid, rates beyond it
    are tried one after the other, by the ratio of the last two, until the best is inside:
    `MAX_EXTENSIONS` at most, and none above a rate at which a training diverged.

    Args:
      config: what to compare; the defaults if None.
      run_dir: where cells are kept as they finish, and at the end the table, figures and README.md;
        a cell found there is not run again. Nothing is written by default.
      executor: where trainings run; see `sweep`.
      progress: whether to show progress bars.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      RunFolderError: if `run_dir` holds another comparison, is in use by another run, is damaged,
        or cannot be read or written.
      EDLError: if a library that studies need is missing, or as `sweep`.
    """
    config = config_or_default(config, CompareConfig)
    run_dir = None if run_dir is None else user_path(run_dir)
    check_libraries("pandas", "statsmodels")
    forget_trainers()  # the code of the user's own losses may have changed
    names, settings, data, losses = config.loss_names(), points(config.grid), {}, {}
    for setting in settings:  # here, so that a data set is prepared once
        train = with_fields(Cell(config.train, config.split), setting).train
        dataset = load_dataset(train.data)
        data[dataset.digest] = dataset
        for name in names:
            loss = resolve_config_loss(dataclasses.replace(train, loss=name), dataset)
            losses.setdefault(name, describe(loss))
    identity = {"compare": as_json(config), "losses": losses}
    identity["data"] = [dataset.identity for dataset in data.values()]
    with sweeps_of(run_dir, identity, executor, progress) as (sweep, folder):

        def run(cells: Sequence[Point], seeds: Sequence[int]) -> list[Row]:
            base = Cell(config.train, config.split)
            return sweep(base, cells, seeds, Cell.run, seed_field="train.seed", measures=MEASURES)

        cells = [{**setting, LOSS: name} for setting in settings for name in names]
        tuned: list[Row] = []
        if config.learning_rates:
            rates, tuned = tune(
                lambda points: run(
                    [{**point, SPLIT: "val"} for point in points], config.seeds(tuning=True)
                ),
                cells,
                config.learning_rates,
            )
            cells = [{**cell, RATE: rate} for cell, rate in zip(cells, rates, strict=True)]
        compared = run([{**cell, SPLIT: config.split} for cell in cells], config.seeds())
        return _study(config, data.values(), compared, tuned).written(folder)


def _study(
    config: CompareConfig, data: Iterable[Dataset], compared: list[Row], tuned: list[Row]
) -> Study:
    by = [*config.grid, LOSS]
    split = {"test": "test", "val": "validation"}[config.split]
    names = short_names(config.loss_names())
    tables, figures = {}, {}
    cells = _percent(compared, by, names)
    title = f"{split.capitalize()} accuracy, %, after the last epoch"
    tables[title] = comparison_table(cells, by)
    drawn = plot_curves(cells, LOSS, list(config.grid), "epochs", "epoch", "accuracy, share")
    figures["accuracy"] = ("Accuracy after each epoch, mean over the seeds.", drawn)
    seeds = config.seeds()
    notes = [
        f"Data: {'; '.join(dataset.source for dataset in data)}.",
        f"Seeds {seeds[0]} to {seeds[-1]}, the same for all losses: differences are paired.",
        "A training that diverged counts with the accuracy of guessing, and in no other metric.",
        METHOD,
        other_settings(config.train, but=["loss"]),
    ]
    if tuned:
        rates = summary(_percent(tuned, [*by, RATE], names), [*by, RATE], ["accuracy"])
        tables["Learning rates on validation images"] = rates
        notes.append(
            f"Learning rates: the best by mean validation accuracy over {config.tuning_seeds} "
            "seeds that the comparison does not use. No test image was looked at for it. At an end "
            f"of the grid, up to {MAX_EXTENSIONS} rates beyond it were tried, none above one that "
            "diverged."
        )
    return Study("Comparison of losses", notes, tables, figures, [*compared, *tuned])


def _percent(rows: list[Row], by: Sequence[str], names: Mapping[str, str]) -> Frame:
    cells = frame(rows, by)
    cells[LOSS] = cells[LOSS].map(names)
    for name in ("accuracy", "calibration_error"):
        cells[name] = 100 * cells[name].astype(float)
    return cells


def comparison_table(cells: Frame, by: Sequence[str]) -> Frame:
    """Each loss in each setting, and its difference to the first loss there, with a verdict.

    Args:
      cells: from `frame`, accuracies in percent.
      by: the columns that tell settings apart, `train.loss` last.
    """
    names = list(dict.fromkeys(cells[LOSS]))
    table = summary(cells, by, MEASURES)
    extra = cells.groupby(list(by), sort=False, dropna=False)
    if RATE in cells:
        table.insert(len(by), RATE, extra[RATE].first().to_numpy())
    table["diverged"] = extra["diverged"].sum().to_numpy()
    pairs = [(name, names[0]) for name in names[1:]]
    tests = contrast(cells, by, {"accuracy": {LOSS: pairs}})
    if len(tests):
        tests = tests.rename(columns={"value": LOSS})
        tests = tests.drop(columns=["axis", "baseline", "measure", "n"])
        table = table.merge(tests, on=list(by), how="left")
    first = [*by, *([RATE] if RATE in table else []), "n", "accuracy_mean", "accuracy_std"]
    last = [x for x in table if x.startswith(("nll", "calibration"))]
    return table[[*first, *(x for x in table if x not in (*first, *last)), *last]]
