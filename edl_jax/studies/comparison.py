"""Train with several losses over the same seeds, and compare them."""

import dataclasses
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs import RunFolder, as_finite, as_json
from edl_jax.storage import write_atomically
from edl_jax.studies.summary import Summary, format_table, summarise
from edl_jax.training import TrainConfig, make_trainer
from edl_jax.training.loop import Row
from edl_jax.training.losses import check_loss_name, describe_loss
from edl_jax.training.training import load_config_dataset, resolve_config_loss
from edl_jax.validation import MAX_SEED, check_whole


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Which losses are compared, and how. Checked when made.

    Everything but the loss is the same for all: settings, data, seeds (so initial weights, data
    order and augmentation). The differences are therefore paired by seed.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    losses: tuple[str, ...] = ("cross_entropy", "edl")
    """Losses, each named as in TrainConfig.loss; the first is what the others are compared with."""
    num_seeds: int = 3
    """Trainings of each loss, with the seeds train.seed, train.seed + 1, ..."""
    train: TrainConfig = TrainConfig()
    """Settings of every training; its loss is replaced by each of `losses`."""

    def __post_init__(self) -> None:
        if not self.losses or len(set(self.losses)) != len(self.losses):
            raise ConfigError(
                f"CompareConfig.losses is {self.losses}; expected one or more different losses."
            )
        for name in self.losses:
            check_loss_name(name)
        check_whole(self, "num_seeds", 1, MAX_SEED - self.train.seed)


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """What `compare` gives.

    Attributes:
      cells: one for each finished training: `loss`, `seed`, `test_accuracy` and `epochs`, the rows
        of its history.
      summaries: one for each loss.
      table: the summaries as a Markdown table.
      source: a sentence that says which data was used.
    """

    cells: list[dict[str, Any]]
    summaries: list[Summary]
    table: str
    source: str


def compare(
    config: CompareConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> CompareResult:
    """Train with every loss over every seed and compare test accuracies of the last epoch.

    Args:
      config: what to compare; the defaults unless given.
      run_dir: where cells are kept as they finish; a cell found there is not run again. Nothing is
        written unless given.
      progress: whether to show progress bars.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      RunFolderError: if `run_dir` holds another comparison.
    """
    config = config or CompareConfig()
    dataset = load_config_dataset(config.train)
    configs = {name: dataclasses.replace(config.train, loss=name) for name in config.losses}
    losses = {name: resolve_config_loss(configs[name], dataset) for name in config.losses}
    folder = None
    if run_dir is not None:
        described = {name: describe_loss(loss) for name, loss in losses.items()}
        identity = {"compare": as_json(config), "data": dataset.name, "losses": described}
        folder = RunFolder(Path(run_dir), identity)
    cells = []
    if folder is not None:
        cells = folder.resume_rows(name="cells.jsonl")
    finished = {(cell["loss"], cell["seed"]) for cell in cells}

    seeds = range(config.train.seed, config.train.seed + config.num_seeds)
    missing = [(name, seed) for name in losses for seed in seeds if (name, seed) not in finished]
    bar = tqdm(
        total=len(missing) * config.train.epochs,
        desc=f"{len(missing)} trainings",
        unit="epoch",
        disable=not progress,
    )

    trainers = {name: make_trainer(configs[name], loss=losses[name]) for name, _ in missing}
    stopping = threading.Event()

    def advance(_: Row) -> None:
        if stopping.is_set():
            raise EDLError("the comparison was stopped")
        bar.update()

    def run(name: str, seeds: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "loss": name,
                "seed": seed,
                "test_accuracy": result.test_accuracy,
                "epochs": result.history,
            }
            for seed, result in zip(seeds, trainers[name](seeds, report=advance), strict=True)
        ]

    with bar, ThreadPoolExecutor(_num_side_by_side()) as pool:
        futures = [pool.submit(run, name, group) for name, group in _groups(missing)]
        try:
            for future in as_completed(futures):
                cells += (new := future.result())
                if folder is not None:
                    folder.append_rows(new, "cells.jsonl")
        except BaseException:
            # Another training failed, or Ctrl-C: the others end with their epoch.
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    cells.sort(key=lambda cell: (config.losses.index(cell["loss"]), cell["seed"]))

    accuracies = {
        name: np.asarray([cell["test_accuracy"] for cell in cells if cell["loss"] == name])
        for name in config.losses
    }
    summaries = summarise(accuracies)
    table = format_table(summaries)
    if folder is not None:
        results = [as_finite(dataclasses.asdict(summary)) for summary in summaries]
        folder.write_json("results.json", {"data": dataset.source, "losses": results})
        write_atomically(folder.path / "table.md", table.encode())
    return CompareResult(cells, summaries, table, dataset.source)


def _groups(cells: list[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    """The seeds of each loss that are trained by one call: all, on an accelerator."""
    if jax.default_backend() == "cpu":
        # Seed by seed: a loss begun twice at the same time would be compiled twice.
        return [(name, [seed]) for name, seed in sorted(cells, key=lambda cell: cell[1])]
    names = dict.fromkeys(name for name, _ in cells)
    return [(name, [seed for other, seed in cells if other == name]) for name in names]


def _num_side_by_side() -> int:
    """Calls to run at once: XLA's CPU backend leaves cores idle in a small convolution."""
    return min(4, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
