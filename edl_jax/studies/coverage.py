"""Do synthetic pairs cover what training visits? Outputs of real trainings beside the pairs."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from annotated_types import Ge, MinLen

from edl_jax.checked import Checked, Count, Distinct, OneOf, check
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import EvolvedLoss
from edl_jax.losses.by_name import check_loss_name, load_pretrained, resolve_method
from edl_jax.losses.searched import SearchedLoss
from edl_jax.objective import MARGINS, SEVERITIES, measure
from edl_jax.pairs import REGIMES, Mixture, Pairs, sample_pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import Row, as_finite
from edl_jax.studies.cells import for_all_seeds, kept
from edl_jax.studies.figures import plot_curves, short_names
from edl_jax.studies.statistics import is_covered, mmd
from edl_jax.studies.sweep import asked, study_folder, sweep
from edl_jax.studies.tables import Frame, Study, frame, other_settings, summary
from edl_jax.training import TrainConfig
from edl_jax.training.classifier import AXIS
from edl_jax.training.learner import Learner
from edl_jax.training.trainer import Trainer
from edl_jax.training.training import resolve_config_loss

CONTROL, MIXTURE = "fresh synthetic pairs", "mixture"
BY = ["loss", "part", "epoch"]
DISTANCES = {"coverage": "share of outputs covered", "mmd": "squared maximum mean discrepancy"}
OF_EVOLVED = ("pairwise_accuracy", "violated_margins", "gradient_ratio")
_LEAST_PROBABILITY = 1e-6  # below it, and above 1 minus it, pairs count as equally sure


@dataclasses.dataclass(frozen=True)
class CoverageConfig(Checked):
    """Which training runs to record, when, and what to compare their outputs with."""

    losses: Annotated[tuple[str, ...], MinLen(1), Distinct()] = ("cross_entropy", "edl")
    """Losses to train with, each named as in TrainConfig.loss."""
    epochs: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 1, 2, 4, 6)
    """Epochs after which outputs are recorded, in increasing order; 0 is at initialization."""
    num_seeds: Count = 3
    """Number of training runs per loss, with the seeds train.seed, train.seed + 1, ..."""
    num_outputs: Annotated[int, Ge(16)] = 2048
    """Number of outputs to record at each epoch from train images, in whole batches, and from
    held-out images; fewer if there are fewer images."""
    num_synthetic: Annotated[int, Ge(16)] = 2048
    """Number of synthetic pairs to compare with, from the mixture and from each regime. Memory
    grows with its square."""
    mixture: Mixture = Mixture()
    """Weights of the regimes in the mixture."""
    evolved: str = "edl"
    """Evolved loss whose ranking is measured on the outputs: a shipped one or a loss file."""
    train: TrainConfig = TrainConfig()
    """Settings of every training run; each of `losses` replaces its loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.losses, self.evolved):
            check_loss_name(name)
            if isinstance(resolve_method(name), SearchedLoss):
                expected = "the loss that `edl train --method` found, in its search/found.json"
                raise ConfigError(f"{name!r} is yet to be searched for; expected {expected}.")
        last = self.train.epochs
        if list(self.epochs) != sorted({*self.epochs}) or self.epochs[-1] > last:
            raise ConfigError(
                f"CoverageConfig.epochs is {self.epochs}; expected increasing numbers, none later "
                f"than the last epoch, {last}."
            )
        dataclasses.replace(self.train, seed=self.train.seed + self.num_seeds - 1)  # is checked
        if self.train.augmentation.mixes:
            raise ConfigError(
                "CoverageConfig.train.augmentation has mixup or cutmix; expected neither: the "
                "output for a mixed image has no one true class."
            )

    def run(self) -> Row:
        """Train once, and compare the outputs: `outputs`, rows of `compare_outputs`."""
        measured, evolved = [], self.ranked()
        count = load_dataset(self.train.data).num_classes
        references, _ = draw_references(self.num_synthetic, count, self.mixture)
        outputs = record(self.train, epochs=self.epochs, num_outputs=self.num_outputs)
        for epoch, parts in outputs.items():
            for part, pairs in parts.items():
                rows = compare_outputs(pairs, references, evolved)
                measured += [{"epoch": epoch, "part": part, **row} for row in rows]
        return {"outputs": measured}

    def ranked(self) -> EvolvedLoss:
        """The loss that `evolved` names; a formula, an unknown severity or margin is refused."""
        is_file = self.evolved.endswith(".safetensors")
        loss = EvolvedLoss.load(self.evolved) if is_file else load_pretrained(self.evolved)
        for part, known in {"severity": SEVERITIES, "margin": MARGINS}.items():
            if part in loss.provenance.config:
                name = f"the {part} of {self.evolved} (register your own, as in a --config file)"
                check(name, loss.provenance.config[part], Annotated[str, OneOf(known)])
        return loss


def coverage(
    config: CoverageConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    executor: Executor | str | int | None = None,
    progress: bool = False,
) -> Study:
    """Record outputs of real trainings and compare them with the synthetic pairs.

    The arguments, and what is raised, are those of `compare`.
    """
    config, run_dir = asked(config, CoverageConfig, run_dir)
    kept.cache_clear()  # the code of the user's own losses may have changed
    dataset, evolved = load_dataset(config.train.data), config.ranked()
    one = jax.ShapeDtypeStruct((1, dataset.num_classes), jnp.float32)
    jax.eval_shape(evolved, one, jax.ShapeDtypeStruct((1,), jnp.int32))  # refuses a class count
    identity = {"coverage": config, "data": dataset.identity, "evolved": describe(evolved)}
    for name in config.losses:
        train = dataclasses.replace(config.train, loss=name)
        identity[f"loss {name}"] = describe(resolve_config_loss(train, dataset))
    seeds = range(config.train.seed, config.train.seed + config.num_seeds)
    with study_folder(run_dir, identity) as folder:
        options = {"seed_field": "train.seed", "folder": folder, "progress": progress}
        grid = {"train.loss": config.losses}
        rows = sweep(config, grid, seeds, CoverageConfig.run, executor, **options)
        return _study(config, dataset, rows).written(folder)


def _study(config: CoverageConfig, dataset: Dataset, rows: list[Row]) -> Study:
    references, fresh = draw_references(config.num_synthetic, dataset.num_classes, config.mixture)
    names = short_names(config.losses)
    control = {"loss": CONTROL, "seed": 0, "part": "", "epoch": ""}
    measured = [control | row for row in compare_outputs(fresh, references, config.ranked())]
    for row in rows:
        head = {"loss": names[row["train.loss"]], "seed": row["seed"]}
        measured += [head | output for output in row.get("outputs", ())]
    cells = frame(measured)
    seen = cells[cells["part"] == "train"].groupby(["loss", "reference", "seed"], sort=False)
    figures = {}
    caption = "Train outputs beside the mixture and each regime, mean over the seeds"
    for name, words in DISTANCES.items():
        curves = seen[name].agg(list).reset_index()
        drawn = plot_curves(curves, "reference", ["loss"], name, "epoch", words, config.epochs)
        figures[name] = (f"{caption}: {words}.", drawn)
    notes = [
        f"Data: {dataset.source}.",
        f"{config.num_seeds} seeds; up to {config.num_outputs} outputs of train images, augmented "
        "and with the statistics of the batch, and of held-out images.",
        f"{config.num_synthetic} synthetic pairs of the mixture and of each regime. Coverage: "
        "share of outputs inside the support of the pairs. The nearest regime: of the least mmd.",
        f"Ranking and gradient on the outputs: those of {config.evolved}.",
        other_settings(config, but=["losses", "train.loss"]),
    ]
    tables = {"Outputs of trainings beside the synthetic mixture": overview(cells)}
    return Study("Coverage of real outputs by synthetic pairs", notes, tables, figures, rows)


def overview(cells: Frame) -> Frame:
    """For each loss, part and epoch, and for the control: the mixture, and the nearest regime."""
    is_mixture = cells["reference"] == MIXTURE
    table = summary(cells[is_mixture], BY, [*DISTANCES, "correct", *OF_EVOLVED])
    regimes = summary(cells[~is_mixture], [*BY, "reference"], ["mmd"])
    nearest = regimes.loc[regimes.groupby(BY, sort=False)["mmd_mean"].idxmin()]
    table.insert(len(BY), "nearest regime", nearest["reference"].to_numpy())
    return table


def record(
    train: TrainConfig, *, epochs: Sequence[int], num_outputs: int
) -> dict[int, dict[str, Pairs]]:
    """Outputs of one training by epoch and split, of the same images for every epoch and seed.

    Of train images they are as the loss sees them, in whole batches.
    """
    data, trainer = load_dataset(train.data), for_all_seeds(_trainer, train)
    batches = min(num_outputs, len(data.train_labels)) // train.batch_size
    counts = {"train": max(batches, 1) * train.batch_size}
    counts["val" if train.data.val_examples else "test"] = num_outputs
    run, key = trainer.of_seed(train.seed)
    state, outputs = run.init(key), {}
    for epoch in range(epochs[-1] + 1):
        if epoch:
            state, _ = run.advance(state, run.period)
        for split, count in counts.items() if epoch in epochs else ():
            labels = getattr(data, f"{split}_labels")
            rows = np.random.default_rng(0).permutation(len(labels))[:count]
            logits = run.outputs(state, run.key, split, rows).astype(np.float32)
            probabilities: Any = np.asarray(jax.nn.softmax(logits))
            pairs = Pairs(probabilities, labels[rows], np.full_like(labels[rows], -1))  # no regime
            outputs.setdefault(epoch, {})[split] = pairs
    return outputs


def _trainer(train: TrainConfig) -> Trainer:
    data = load_dataset(train.data)
    return Trainer(Learner(train, data, resolve_config_loss(train, data), device_mesh(AXIS)))


@functools.lru_cache(maxsize=2)
def draw_references(count: int, num_classes: int, mixture: Mixture) -> tuple[Any, Pairs]:
    """Always the same pairs: of the mixture and of each regime, by name; and fresh, a control."""
    keys = jax.random.split(jax.random.key(0), 3)
    draw = functools.partial(sample_pairs, num_classes=num_classes)
    mixed, fresh = (jax.device_get(draw(key, count, mixture=mixture)) for key in keys[:2])
    pool = jax.device_get(draw(keys[2], count * len(REGIMES)))  # exactly as many of each
    regimes = {
        name: jax.tree.map(lambda x, index=index: x[pool.regimes == index], pool)
        for index, name in enumerate(REGIMES)
    }
    return {MIXTURE: mixed, **regimes}, fresh


def compare_outputs(
    pairs: Pairs, references: Mapping[str, Pairs], evolved: EvolvedLoss
) -> list[dict[str, Any]]:
    """A row for each reference; the first, the mixture's, also has `correct` and the ranking."""
    points, rows = coordinates(pairs), []
    supports = {name: coordinates(reference) for name, reference in references.items()}
    # The usual width, and one for all, so that the discrepancies can be compared.
    width = float(np.median(scipy.spatial.distance.pdist(supports[MIXTURE])))
    for name, support in supports.items():
        covered = float(is_covered(points, support).mean())
        rows.append({"reference": name, "coverage": covered, "mmd": mmd(points, support, width)})
    rows[0]["correct"] = float((pairs.probabilities.argmax(-1) == pairs.labels).mean())
    rows[0] |= as_finite(rank_outputs(pairs, evolved))
    return rows


def rank_outputs(pairs: Pairs, loss: EvolvedLoss) -> dict[str, float]:
    """Ranking of a loss's network, of the margins' scale, and its gradient; NaN where undefined."""
    severity = SEVERITIES[loss.provenance.config.get("severity", "surprisal")]
    margin = MARGINS[loss.provenance.config.get("margin", "proportional")]
    network = loss.replace(scale=np.float32(1))
    metrics = measure(network, pairs, severity=severity, margin=margin, scale=loss.scale)
    return {name: metrics.get(name, np.nan) for name in OF_EVOLVED}


def coordinates(pairs: Pairs) -> np.ndarray:
    """Logits of the true class's and the largest other probability, and the entropy, `[n, 3]`."""
    p = np.asarray(pairs.probabilities, np.float64)
    is_label = np.arange(p.shape[-1]) == np.asarray(pairs.labels)[:, None]
    largest = np.stack([p[is_label], np.where(is_label, 0, p).max(axis=-1)], axis=-1)
    held = np.clip(largest, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    entropy = scipy.special.entr(p).sum(axis=-1, keepdims=True)
    return np.concatenate([scipy.special.logit(held), entropy], axis=-1)
