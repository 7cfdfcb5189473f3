"""How the metrics of pretraining map to accuracy: train with losses from bad to good."""

import dataclasses
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from edl_jax.errors import ConfigError, DivergedError
from edl_jax.evolution import run_keys
from edl_jax.losses import EvolvedLoss, Provenance, calibrated
from edl_jax.runs.environment import versions
from edl_jax.runs.folder import RunFolder, as_finite, as_json, writing
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.seeds import keys_of, make_seed_runs
from edl_jax.training import make_trainer
from edl_jax.training.training import load_config_dataset

TRAININGS = "downstream.jsonl"


class Source(NamedTuple):
    """Where a loss comes from: the leader of an evolution after some generations."""

    severity: str
    seed: int
    generation: int


def sources(config: AblateConfig) -> list[Source]:
    """Where the losses of `AblateConfig.downstream_losses` come from."""
    stops, severities = config.downstream_generations, config.severities
    severities = severities or (config.pretrain.severity,)
    found = []
    for index in range(config.downstream_losses):
        turn, stop = divmod(index, len(stops))
        severity = severities[turn % len(severities)]
        found.append(Source(severity, config.pretrain.seed + index, stops[stop]))
    return found


def train_downstream(
    config: AblateConfig,
    folder: RunFolder | None = None,
    progress: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Train once with each loss of `sources`.

    Args:
      config: the ablation's configuration.
      folder: where losses and accuracies are kept; a training found there is not run again.
      progress: whether to show progress bars.
      check_stop: called with each loss evolved, and after each epoch; what it raises ends this.

    Returns:
      A row for each loss: `severity`, `seed` and `generation` that it is from; the metrics of
      `SeedRuns.measure` by pretrain.severity, whatever it was evolved with; `accuracy` on the
      validation images after the last epoch; and whether training `diverged`, which counts as the
      accuracy of guessing.

    Raises:
      ConfigError: if the losses cannot serve the data's class count.
      DataError: if the data cannot be used.
      RunFolderError: if the folder cannot be written.
    """
    dataset = load_config_dataset(config.train)
    num_classes, served = dataset.num_classes, config.pretrain.class_counts
    if config.pretrain.network == "pair" and num_classes != served[0]:
        raise ConfigError(
            f"AblateConfig.pretrain.class_counts is {served} with network 'pair', and "
            f"{dataset.name} has {num_classes} classes; expected ({num_classes},)."
        )
    check = operator.itemgetter(*Source._fields, "data")
    rows = [] if folder is None else folder.resume_rows(name=TRAININGS, check=check)
    # The data that "auto" finds, or that a name stands for, may be another today.
    rows = [row for row in rows if row.get("digest") == dataset.digest]
    found = {Source(*(row[field] for field in Source._fields)): row for row in rows}
    missing = [source for source in sources(config) if source not in found]
    losses: dict[Source, EvolvedLoss] = {}
    for source, loss in _losses(config, folder) if missing else ():
        losses[source] = loss
        check_stop()
    for source in tqdm(missing, "trainings", unit="loss", disable=not progress):
        loss = losses[source]
        accuracy, diverged = 1 / num_classes, False
        try:
            (result,) = make_trainer(config.train, loss=loss, dataset=dataset)(
                [config.train.seed], test=False, report=lambda _: check_stop()
            )
            accuracy = result.history[-1]["accuracy"]
        except DivergedError:
            diverged = True
        metrics = as_finite(loss.provenance.metrics)
        found[source] = {
            **source._asdict(),
            "data": dataset.name,
            "digest": dataset.digest,
            "accuracy": accuracy,
            "diverged": diverged,
            "metrics": metrics,
        }
        if folder is not None:
            folder.append_rows([found[source]], TRAININGS)
    return [found[source] for source in sources(config)]


def _losses(config: AblateConfig, folder: RunFolder | None) -> Iterator[tuple[Source, EvolvedLoss]]:
    """The losses, evolved or from the folder, where they are kept."""
    wanted = sources(config)

    def path(source: Source) -> Path:
        assert folder is not None
        return folder.path / "losses" / f"{'-'.join(map(str, source))}.safetensors"

    for severity in dict.fromkeys(source.severity for source in wanted):
        group = [source for source in wanted if source.severity == severity]
        if folder is not None and all(path(source).exists() for source in group):
            yield from ((source, EvolvedLoss.load(path(source))) for source in group)
            continue
        for source, loss in _evolved(config, group):
            if folder is not None:
                with writing(path(source).name, folder.path):
                    path(source).parent.mkdir(exist_ok=True)
                    loss.save(path(source))
            yield source, loss


def _evolved(config: AblateConfig, wanted: list[Source]) -> Iterator[tuple[Source, EvolvedLoss]]:
    """Evolve with one severity, all its seeds in one program, and take a leader of each."""
    settings = dataclasses.replace(config.pretrain, severity=wanted[0].severity)
    keys, runs = keys_of([source.seed for source in wanted]), make_seed_runs(settings, len(wanted))
    yardstick = runs
    if settings != config.pretrain:
        yardstick = make_seed_runs(config.pretrain, len(wanted))
    pairs = yardstick.held_out(run_keys(keys[0])[2])
    progress, done = runs.init(keys), 0
    for stop in sorted({source.generation for source in wanted}):
        progress = runs.advance(keys, progress, np.int32(done), np.int32(stop))
        done = stop
        rows = np.asarray([i for i, source in enumerate(wanted) if source.generation == stop])
        leaders = jax.tree.map(lambda x, rows=rows: x[rows], runs.leaders(progress))
        for index, metrics in enumerate(yardstick.measure(keys[rows], leaders)):
            loss = EvolvedLoss(
                params=nnx.to_pure_dict(jax.tree.map(lambda x, i=index: x[i], leaders)),
                scale=jnp.ones(()),
                architecture=settings.architecture(),
                provenance=Provenance(as_json(settings), metrics, versions()),
            )
            yield wanted[rows[index]], calibrated(loss, pairs)
