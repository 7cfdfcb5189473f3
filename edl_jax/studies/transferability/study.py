"""Do synthetic pairs cover what training visits? Outputs of real trainings beside the pairs."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from edl_jax.data.dataset import Dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import LOSSES, EvolvedLoss
from edl_jax.losses.by_name import (
    Loss,
    check_loss_name,
    resolve_loss,
    split_loss_name,
)
from edl_jax.pairs import Mixture, Pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import RunFolder, as_finite, as_json, open_run
from edl_jax.runs.preemption import preemptible
from edl_jax.runs.storage import user_path
from edl_jax.studies.results import StudyResults, check_libraries
from edl_jax.studies.transferability import distances
from edl_jax.studies.transferability.measures import (
    MIXTURE,
    compare_pairs,
    draw_references,
    make_ranking,
)
from edl_jax.studies.transferability.recording import (
    PARTS,
    Recording,
    load_recording,
    record,
    save_recording,
)
from edl_jax.studies.transferability.results import report_transfer
from edl_jax.studies.transferability.rows import CONTROL, Row, cell_of, check_row
from edl_jax.training import TrainConfig
from edl_jax.training.programs import make_train
from edl_jax.training.steps import AXIS
from edl_jax.training.training import load_config_dataset, resolve_config_loss
from edl_jax.validation import (
    check_seed_count,
    check_types,
    check_whole,
    check_wholes,
    config_or_default,
)


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """Which trainings are watched, when, and what they are compared with. Checked when made.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    losses: tuple[str, ...] = ("cross_entropy", "edl")
    """Losses to train with, each named as in TrainConfig.loss."""
    epochs: tuple[int, ...] = (0, 1, 2, 4, 6)
    """Epochs after which outputs are recorded, increasing; 0 is at initialisation."""
    num_seeds: int = 3
    """Trainings of each loss, with the seeds train.seed, train.seed + 1, ..."""
    num_outputs: int = 2048
    """Outputs recorded at each epoch: of train images, in whole batches, and of held-out images;
    fewer where there are fewer images."""
    num_synthetic: int = 2048
    """Synthetic pairs of the mixture, and of each regime, that they are compared with."""
    mixture: Mixture = Mixture()
    """Weights of the regimes in the mixture."""
    evolved: str = "edl"
    """Evolved loss whose ranking is measured on the outputs: a shipped one or a loss file."""
    train: TrainConfig = TrainConfig()
    """Settings of every training; its loss is replaced by each of `losses`."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.losses or len(set(self.losses)) != len(self.losses):
            raise ConfigError(
                f"TransferConfig.losses is {self.losses}; expected one or more different losses."
            )
        for name in (*self.losses, self.evolved):
            check_loss_name(name)
        if split_loss_name(self.evolved)[0] in LOSSES:
            raise ConfigError(
                f"TransferConfig.evolved is {self.evolved!r}; expected an evolved loss, such as "
                "edl or a file *.safetensors."
            )
        check_wholes(self, "epochs", 0)
        if not self.epochs or list(self.epochs) != sorted({*self.epochs}):
            raise ConfigError(
                f"TransferConfig.epochs is {self.epochs}; expected one or more, increasing."
            )
        if self.epochs[-1] > self.train.epochs:
            raise ConfigError(
                f"TransferConfig.epochs is {self.epochs} with trainings of {self.train.epochs} "
                "epochs; expected none later than the last."
            )
        check_seed_count(self, "num_seeds", self.train.seed)
        check_whole(self, "num_outputs", 16)
        check_whole(self, "num_synthetic", 16)
        if self.train.augmentation.mixes:
            raise ConfigError(
                "TransferConfig.train.augmentation has mixup or cutmix; expected neither: the "
                "output for a mixed image has no one true class."
            )


def transfer(
    config: TransferConfig | None = None,
    *,
    run_dir: str | os.PathLike[str],
    progress: bool = False,
) -> StudyResults:
    """Record outputs of real trainings and compare them with the synthetic pairs.

    Args:
      config: what to record and compare; the defaults unless given.
      run_dir: where outputs, comparisons, tables and figures are kept. A training or comparison
        found there is not run again.
      progress: whether to show progress bars.

    Returns:
      What was found, as it is written to `run_dir`.

    Raises:
      ConfigError, DataError, LossFileError: if a name, the data or a file cannot be used.
      InputError: if the evolved loss is for another class count than the data's.
      RunFolderError: if `run_dir` holds another study, is in use by another run, is damaged, or
        cannot be read or written.
      Preempted: on SIGTERM, after the epoch or comparison under way.
      EDLError: if a training diverges, or a library that studies need is missing.
    """
    config, path = config_or_default(config, TransferConfig), user_path(run_dir)
    check_libraries("sklearn")
    dataset = load_config_dataset(config.train)
    losses = {
        name: resolve_config_loss(dataclasses.replace(config.train, loss=name), dataset)
        for name in config.losses
    }
    evolved = resolve_loss(config.evolved)
    assert isinstance(evolved, EvolvedLoss)
    one = jax.ShapeDtypeStruct((1, dataset.num_classes), jnp.float32)
    jax.eval_shape(evolved, one, jax.ShapeDtypeStruct((1,), jnp.int32))  # refuses a class count
    described = {name: describe(loss) for name, loss in losses.items()}
    identity = {
        "transfer": as_json(config),
        "data": dataset.identity,
        "losses": described,
        "evolved": describe(evolved),
    }
    with open_run(path, identity) as folder, preemptible(True) as check_stop:
        return _transfer(config, folder, dataset, losses, evolved, progress, check_stop)


def _transfer(
    config: TransferConfig,
    folder: RunFolder,
    dataset: Dataset,
    losses: Mapping[str, Loss],
    evolved: EvolvedLoss,
    progress: bool,
    check_stop: Callable[[], None],
) -> StudyResults:
    """Record, compare and report what a folder lacks."""
    recordings = _record_missing(config, folder, dataset, losses, progress, check_stop)
    references, fresh = draw_references(config.num_synthetic, dataset.num_classes, config.mixture)
    sources = [({"loss": CONTROL, "seed": None, "epoch": None, "part": None}, fresh)]
    sources += _outputs(config, recordings)
    comparisons = _compare_missing(folder, sources, references, evolved, progress, check_stop)
    results = report_transfer(config, dataset.source, recordings, references, comparisons)
    results.write(folder)
    return results


def _record_missing(
    config: TransferConfig,
    folder: RunFolder,
    dataset: Dataset,
    losses: Mapping[str, Loss],
    progress: bool,
    check_stop: Callable[[], None],
) -> dict[tuple[str, int], Recording]:
    """The outputs of every training by loss and seed; what the folder lacks is trained first."""
    recordings, mesh = {}, device_mesh(AXIS)
    total = len(losses) * config.num_seeds * config.train.epochs
    with tqdm(total=total, desc="trainings", unit="epoch", disable=not progress) as bar:

        def advance(_: dict[str, Any]) -> None:
            check_stop()
            bar.update()

        for index, (name, loss) in enumerate(losses.items()):
            train = dataclasses.replace(config.train, loss=name)
            functions = make_train(train, dataset, loss, mesh)
            for seed in range(train.seed, train.seed + config.num_seeds):
                path = folder.path / f"outputs-{index}-{seed}.npz"
                if path.exists():
                    bar.update(train.epochs)
                else:
                    found = record(
                        train,
                        functions,
                        dataset,
                        seed,
                        epochs=config.epochs,
                        num_outputs=config.num_outputs,
                        report=advance,
                    )
                    save_recording(folder, path.name, found)
                recordings[name, seed] = load_recording(path, config.epochs)
    return recordings


def _outputs(
    config: TransferConfig, recordings: Mapping[tuple[str, int], Recording]
) -> Iterator[tuple[Row, Pairs]]:
    """All that was recorded, and what it is."""
    for (loss, seed), recording in recordings.items():
        for number, epoch in enumerate(config.epochs):
            for part in PARTS:
                cell = {"loss": loss, "seed": seed, "epoch": epoch, "part": part}
                yield cell, recording.pairs(part, number)


def _compare_missing(
    folder: RunFolder,
    sources: Sequence[tuple[Row, Pairs]],
    references: Mapping[str, Pairs],
    evolved: EvolvedLoss,
    progress: bool,
    check_stop: Callable[[], None],
) -> list[Row]:
    """All comparisons: those found in the folder, and the others, which are added to it."""
    rows = folder.resume_rows(name="comparisons.jsonl", check=check_row)
    finished = {cell_of(row) for row in rows}
    # One width for all, so that the discrepancies can be compared.
    width = distances.median_distance(distances.coordinates(references[MIXTURE]))
    ranking = make_ranking(evolved)
    for cell, pairs in tqdm(sources, desc="comparisons", disable=not progress):
        if cell_of(cell) in finished:
            continue
        check_stop()
        found = {name: compare_pairs(pairs, other, width) for name, other in references.items()}
        row = {**cell, "references": found, "ranking": as_finite(ranking(pairs))}
        folder.append_rows([row], "comparisons.jsonl")
        rows.append(row)
    return rows
