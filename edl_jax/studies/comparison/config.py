"""What a comparison of losses is told."""

import dataclasses
import itertools
from typing import Literal, NamedTuple

from edl_jax.errors import ConfigError
from edl_jax.losses import LOSSES, MARGIN_LOSSES
from edl_jax.losses.by_name import check_loss_name
from edl_jax.training import TrainConfig
from edl_jax.validation import check_different, check_seed_count, check_types, check_whole

STATIC = "static"
SPLITS = {"test": "test", "val": "validation"}  # by what a sentence calls them


class Setting(NamedTuple):
    """What losses are compared under: a model, a data set and a rate of label noise."""

    model: str
    dataset: str
    noise_rate: float

    def __str__(self) -> str:
        """Such as `resnet8 on cifar10, noise rate 40 %`."""
        noise = f", noise rate {100 * self.noise_rate:g} %" if self.noise_rate else ""
        return f"{self.model} on {self.dataset}{noise}"


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Which losses are compared, and how. Checked when made.

    Within a setting (model, data set, noise rate) everything but the loss, and its learning rate
    where one is looked for, is the same for all: recipe, data, seeds (so initial weights, data
    order and augmentation). The differences are therefore paired by seed.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    losses: tuple[str, ...] = ("cross_entropy", "edl")
    """Losses, each named as in TrainConfig.loss; the first is what the others are compared with.
    `static` stands for all baselines without parameters of their own that suit a linear head."""
    num_seeds: int = 5
    """Trainings of each loss in each setting, with the seeds train.seed, train.seed + 1, ..."""
    models: tuple[str, ...] = ()
    """Architectures, each named as in TrainConfig.model; none: train.model alone."""
    datasets: tuple[str, ...] = ()
    """Data sets, each named as in TrainConfig.dataset; none: train.dataset alone."""
    noise_rates: tuple[float, ...] = ()
    """Rates of label noise, as train.noise_rate, of the kind train.label_noise (symmetric if that
    is none); none: train.noise_rate alone."""
    learning_rates: tuple[float, ...] = ()
    """Every loss takes the best of these learning rates by accuracy on validation images, in each
    setting anew (needs train.val_examples), or a better one that is found beyond an end of them;
    none: train.learning_rate for all."""
    tuning_seeds: int = 1
    """Trainings at each of `learning_rates`, with the seeds that follow those of the comparison."""
    split: Literal["test", "val"] = "test"
    """Images that losses are compared on: test; or val (which needs train.val_examples), to choose
    among losses without a look at the test images."""
    train: TrainConfig = TrainConfig()
    """Settings of every training; what is compared replaces its own."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.losses:
            raise ConfigError("CompareConfig.losses is (); expected one or more different losses.")
        for field in ("losses", "models", "datasets", "noise_rates", "learning_rates"):
            check_different(self, field, field.replace("_", " "))
        for name in self.losses:
            check_loss_name(name, STATIC)
        check_seed_count(self, "num_seeds", self.train.seed)
        check_whole(self, "tuning_seeds", 1)
        if self.learning_rates:
            check_seed_count(self, "tuning_seeds", self.train.seed + self.num_seeds)
        if len(self.learning_rates) == 1:
            raise ConfigError(
                f"CompareConfig.learning_rates is {self.learning_rates}; expected two or more to "
                "choose from, or none and this one as train.learning_rate."
            )
        if self.split == "val" and not self.train.val_examples:
            raise ConfigError(
                "CompareConfig.split is 'val' without validation images to compare on; expected "
                "train.val_examples of more than 0."
            )
        if self.learning_rates and not self.train.val_examples:
            raise ConfigError(
                f"CompareConfig.learning_rates is {self.learning_rates} without validation images "
                "to choose by; expected train.val_examples of more than 0."
            )
        self.trainings()  # refuses names and rates that cannot work

    def loss_names(self) -> tuple[str, ...]:
        """The losses, each once, with all that `static` stands for."""
        static = [
            name
            for name, part in LOSSES.items()
            if not isinstance(part, type) and name not in MARGIN_LOSSES
        ]
        listed = [static if name == STATIC else [name] for name in self.losses]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(listed)))

    def settings(self) -> list[Setting]:
        """Every setting, those of the same data one after the other."""
        found = itertools.product(
            self.datasets or (self.train.dataset,),
            self.noise_rates or (self.train.noise_rate,),
            self.models or (self.train.model,),
        )
        return [Setting(model, dataset, rate) for dataset, rate, model in found]

    def seeds(self, *, tuning: bool = False) -> range:
        """Seeds of the comparison, or those with which learning rates are chosen."""
        first = self.train.seed
        middle = first + self.num_seeds
        return range(middle, middle + self.tuning_seeds) if tuning else range(first, middle)

    def trainings(self) -> list[TrainConfig]:
        """Every way in which is trained, but for the seeds and for rates beyond a grid."""
        rates = self.learning_rates or (self.train.learning_rate,)
        return [
            self.training(*each)
            for each in itertools.product(self.settings(), self.loss_names(), rates)
        ]

    def training(self, setting: Setting, loss: str, learning_rate: float) -> TrainConfig:
        """How one loss is trained in a setting."""
        named = self.train.label_noise
        noise = "none" if not setting.noise_rate else "symmetric" if named == "none" else named
        return dataclasses.replace(
            self.train,
            loss=loss,
            learning_rate=learning_rate,
            label_noise=noise,
            **setting._asdict(),
        )
