"""Train with several losses over the same seeds, and compare them."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from edl_jax.errors import ConfigError
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import as_json, open_run
from edl_jax.runs.preemption import preemptible
from edl_jax.runs.storage import user_path
from edl_jax.studies.comparison.config import CompareConfig, Setting
from edl_jax.studies.comparison.results import comparison_results
from edl_jax.studies.comparison.rows import (
    MAX_EXTENSIONS,
    best_learning_rates,
    next_learning_rates,
)
from edl_jax.studies.comparison.runs import (
    COMPARISON,
    TUNING,
    Cell,
    Trainer,
    Work,
    check_cell,
    train_all,
    work_of,
)
from edl_jax.studies.results import StudyResults, check_libraries
from edl_jax.training import make_trainer
from edl_jax.training.training import load_config_dataset, resolve_config_loss
from edl_jax.validation import config_or_default

CELLS = "cells.jsonl"


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """What `compare` gives.

    Attributes:
      cells: one for each training of the comparison and then of the tuning, see `train_all`; with
        `chance`, the accuracy of guessing.
      results: the table, figures, protocol and paragraph.
      source: sentences that say which data was used.
    """

    cells: list[dict[str, Any]]
    results: StudyResults
    source: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table: one for each loss in each setting, accuracies in percent."""
        return [dict(row) for row in self.results.tables[0].rows]

    @property
    def table(self) -> str:
        """The table as Markdown."""
        return self.results.tables[0].markdown()


def compare(
    config: CompareConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> CompareResult:
    """Train with every loss over every seed and compare test accuracies of the last epoch.

    With `learning_rates`, every loss is first trained at each of them, in every setting, from
    seeds of their own, and takes the one with the best accuracy on the validation images. No test
    image is looked at for it. The trainings that are compared use the same train part, without the
    validation images. Where a loss's best rate is at an end of its grid, rates beyond it are tried
    one after the other, by the ratio of the last two, until the best is inside: `MAX_EXTENSIONS` at
    most, and none above a rate at which a training diverged.

    Args:
      config: what to compare; the defaults unless given.
      run_dir: where cells are kept as they finish, and at the end tables, figures and README.md; a
        cell found there is not run again. Nothing is written unless given.
      progress: whether to show progress bars.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      RunFolderError: if `run_dir` holds another comparison, is in use by another run, is damaged,
        or cannot be read or written.
      Preempted: on SIGTERM, as soon as the epochs under way end; only with `run_dir`.
      EDLError: if a library that studies need is missing.
    """
    with contextlib.ExitStack() as stack:
        return _compare(config_or_default(config, CompareConfig), stack, run_dir, progress)


def _compare(
    config: CompareConfig,
    stack: contextlib.ExitStack,
    run_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> CompareResult:
    """Compare, with the run folder held in a stack."""
    path = None if run_dir is None else user_path(run_dir)
    check_libraries()
    names = config.loss_names()
    asked: dict[Setting, Setting] = {}  # by what the data set calls itself
    data, losses = {}, {}
    for setting in config.settings():
        trainings = {x: config.training(setting, x, config.train.learning_rate) for x in names}
        found = load_config_dataset(trainings[names[0]])
        key = setting._replace(dataset=found.name)
        if key in asked:
            raise ConfigError(
                f"CompareConfig.datasets is {config.datasets}, of which two are {found.name}; "
                "expected different data sets."
            )
        asked[key], data[key] = setting, found
        losses[key] = {x: resolve_config_loss(training, found) for x, training in trainings.items()}

    folder, cells = None, []
    if path is not None:
        described = {name: describe(loss) for name, loss in next(iter(losses.values())).items()}
        sets = {found.digest: found.identity for found in data.values()}
        identity = {"compare": as_json(config), "data": [*sets.values()], "losses": described}
        folder = stack.enter_context(open_run(path, identity))
        cells: list[Cell] = folder.resume_rows(name=CELLS, check=check_cell)

    def make(work: Work) -> Trainer:
        key = Setting(work.model, work.dataset, work.noise_rate)
        training = config.training(asked[key], work.loss, work.learning_rate)
        return make_trainer(training, loss=losses[key][work.loss], dataset=data[key])

    def keep(cell: Cell) -> None:
        key = Setting(cell["model"], cell["dataset"], cell["noise_rate"])
        cells.append({**cell, "chance": 1 / data[key].num_classes})
        if folder is not None:
            folder.append_rows(cells[-1:], CELLS)

    with preemptible(folder is not None) as check_stop:
        compared, tuned = _trained(config, list(data), cells, make, keep, check_stop, progress)
        results = comparison_results(config, data, compared, tuned)
        if folder is not None:
            results.write(folder)
    sources = dict.fromkeys(found.source for found in data.values())
    return CompareResult(compared + tuned, results, "; ".join(sources))


def _trained(
    config: CompareConfig,
    settings: Sequence[Setting],
    cells: Sequence[Cell],
    make: Callable[[Work], Trainer],
    keep: Callable[[Cell], None],
    check_stop: Callable[[], None],
    progress: bool,
) -> tuple[list[Cell], list[Cell]]:
    """The cells of the comparison and those of the tuning; `keep` adds to `cells` what is missing.

    Settings are those of the data sets as these call themselves.
    """
    names, finished = config.loss_names(), {work_of(cell) for cell in cells}
    tunings = len(config.learning_rates) * config.tuning_seeds
    is_planned = [
        x.phase == COMPARISON or x.learning_rate in config.learning_rates for x in finished
    ]
    missing = len(settings) * len(names) * (config.num_seeds + tunings) - sum(is_planned)
    bar = tqdm(
        total=missing * config.train.epochs,
        desc=f"{missing} trainings",
        unit="epoch",
        disable=not progress,
    )

    def advance() -> None:
        check_stop()
        bar.update()

    def run(works: list[Work]) -> list[Cell]:
        unfinished = [work for work in works if work not in finished]
        train_all(unfinished, make, keep, advance, test=config.split == "test")
        kept = {work_of(cell): cell for cell in cells}
        return [kept[work] for work in works]

    def tuning(setting: Setting, rates: Mapping[str, Sequence[float]]) -> list[Work]:
        return [
            Work(TUNING, name, **setting._asdict(), learning_rate=rate, seed=seed)
            for name, of_loss in rates.items()
            for rate in of_loss
            for seed in config.seeds(tuning=True)
        ]

    compared, tuned = [], []
    with bar:
        for setting in settings:
            rates = dict.fromkeys(names, config.train.learning_rate)
            if config.learning_rates:
                tuned += run(tuning(setting, dict.fromkeys(names, config.learning_rates)))
                for _ in range(MAX_EXTENSIONS):
                    beyond = next_learning_rates(tuned, setting)
                    works = tuning(setting, {name: (rate,) for name, rate in beyond.items()})
                    bar.total += sum(x not in finished for x in works) * config.train.epochs
                    tuned += run(works)
                rates = best_learning_rates(tuned, setting)
            compared += run(
                [
                    Work(COMPARISON, name, **setting._asdict(), learning_rate=rates[name], seed=s)
                    for name in names
                    for s in config.seeds()
                ]
            )
    return compared, tuned
