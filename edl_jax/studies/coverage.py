"""Do synthetic pairs cover what training visits? Outputs of real trainings beside the pairs."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Ge, MinLen

from edl_jax.checked import Checked, Count, Distinct, check_seeds
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError
from edl_jax.losses import EvolvedLoss
from edl_jax.losses.by_name import check_loss_name, resolve_loss
from edl_jax.pairs import Mixture
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import as_json
from edl_jax.studies.figures import plot_curves, short_names
from edl_jax.studies.outputs import MIXTURE, RANKING, compare_outputs, draw_references, record
from edl_jax.studies.sweep import Row, as_study
from edl_jax.studies.tables import Frame, Study, frame, other_settings, summary
from edl_jax.training import TrainConfig
from edl_jax.training.training import resolve_config_loss

CONTROL = "fresh synthetic pairs"
BY = ["loss", "part", "epoch"]
DISTANCES = {"coverage": "share of outputs covered", "mmd": "squared maximum mean discrepancy"}


@dataclasses.dataclass(frozen=True)
class CoverageConfig(Checked):
    """Which trainings are watched, when, and what they are compared with."""

    losses: Annotated[tuple[str, ...], MinLen(1), Distinct()] = ("cross_entropy", "edl")
    """Losses to train with, each named as in TrainConfig.loss."""
    epochs: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 1, 2, 4, 6)
    """Epochs after which outputs are recorded, increasing; 0 is at initialisation."""
    num_seeds: Count = 3
    """Trainings of each loss, with the seeds train.seed, train.seed + 1, ..."""
    num_outputs: Annotated[int, Ge(16)] = 2048
    """Outputs recorded at each epoch: of train images, in whole batches, and of held-out images;
    fewer where there are fewer images."""
    num_synthetic: Annotated[int, Ge(16)] = 2048
    """Synthetic pairs of the mixture, and of each regime, that they are compared with. Memory grows
    with its square."""
    mixture: Mixture = Mixture()
    """Weights of the regimes in the mixture."""
    evolved: str = "edl"
    """Evolved loss whose ranking is measured on the outputs: a shipped one or a loss file."""
    train: TrainConfig = TrainConfig()
    """Settings of every training; its loss is replaced by each of `losses`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.losses, self.evolved):
            check_loss_name(name)
        last = self.train.epochs
        if list(self.epochs) != sorted({*self.epochs}) or self.epochs[-1] > last:
            raise ConfigError(
                f"CoverageConfig.epochs is {self.epochs}; expected increasing numbers, none later "
                f"than the last epoch, {last}."
            )
        check_seeds(self, "num_seeds", self.train.seed)
        if self.train.augmentation.mixes:
            raise ConfigError(
                "CoverageConfig.train.augmentation has mixup or cutmix; expected neither: the "
                "output for a mixed image has no one true class."
            )

    def run(self) -> Row:
        """Train once, and compare the outputs: `outputs`, rows of `compare_outputs`."""
        found, evolved = [], self.ranked()
        outputs = record(self.train, epochs=self.epochs, num_outputs=self.num_outputs)
        for epoch, parts in outputs.items():
            for part, pairs in parts.items():
                count = pairs.probabilities.shape[-1]
                references, _ = draw_references(self.num_synthetic, count, self.mixture)
                rows = compare_outputs(pairs, references, evolved)
                found += [{"epoch": epoch, "part": part, **row} for row in rows]
        return {"outputs": found}

    def ranked(self) -> EvolvedLoss:
        """The loss that `evolved` names."""
        loss = resolve_loss(self.evolved)
        if not isinstance(loss, EvolvedLoss):
            raise ConfigError(
                f"CoverageConfig.evolved is {self.evolved!r}; expected an evolved loss, such as "
                "edl or a file *.safetensors."
            )
        return loss


@as_study(CoverageConfig, "train.seed")
def coverage(config: CoverageConfig) -> Any:
    """Record outputs of real trainings and compare them with the synthetic pairs.

    The arguments, and what is raised, are those of `compare`.
    """
    dataset, evolved = load_dataset(config.train.data), config.ranked()
    one = jax.ShapeDtypeStruct((1, dataset.num_classes), jnp.float32)
    jax.eval_shape(evolved, one, jax.ShapeDtypeStruct((1,), jnp.int32))  # refuses a class count
    identity = {"coverage": as_json(config), "data": dataset.identity, "evolved": describe(evolved)}
    for name in config.losses:
        train = dataclasses.replace(config.train, loss=name)
        identity[f"loss {name}"] = describe(resolve_config_loss(train, dataset))
    grid, run = {"train.loss": config.losses}, CoverageConfig.run
    return identity, lambda sweep: _study(config, dataset, sweep(config, grid, run=run))


def _study(config: CoverageConfig, dataset: Any, rows: list[Row]) -> Study:
    references, fresh = draw_references(config.num_synthetic, dataset.num_classes, config.mixture)
    names = short_names(config.losses)
    mine = {"loss": CONTROL, "seed": 0, "part": "", "epoch": ""}
    found = [mine | row for row in compare_outputs(fresh, references, config.ranked())]
    for row in rows:
        head = {"loss": names[row["train.loss"]], "seed": row["seed"]}
        found += [head | output for output in row.get("outputs", ())]
    cells = frame(found)
    seen = cells[cells["part"] == "train"].groupby(["loss", "reference", "seed"], sort=False)
    figures = {}
    for measure, words in DISTANCES.items():
        curves = seen[measure].agg(list).reset_index()
        drawn = plot_curves(curves, "reference", ["loss"], measure, "epoch", words, config.epochs)
        caption = "Train outputs as the loss sees them beside the mixture and each regime, mean"
        figures[measure] = (f"{caption} over the seeds: {words}.", drawn)
    notes = [
        f"Data: {dataset.source}.",
        f"Seeds {config.train.seed} to {config.train.seed + config.num_seeds - 1}; up to "
        f"{config.num_outputs} outputs of train images, augmented and with the statistics of the "
        "batch, and of held-out images, after the epochs of the table.",
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
    table = summary(cells[is_mixture], BY, [*DISTANCES, "correct", *RANKING])
    regimes = summary(cells[~is_mixture], [*BY, "reference"], ["mmd"])
    nearest = regimes.loc[regimes.groupby(BY, sort=False)["mmd_mean"].idxmin()]
    table.insert(len(BY), "nearest regime", nearest["reference"].to_numpy())
    return table
