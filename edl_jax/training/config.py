"""The configuration of a training: an ordinary CIFAR recipe (He et al. 2016, with Nesterov)."""

import dataclasses

from edl_jax.training.datasets import DATASETS
from edl_jax.training.losses import check_loss_name
from edl_jax.training.resnet import MODELS
from edl_jax.validation import MAX_SEED, check_choice, check_range, check_whole


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a classifier is trained. Checked when made.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    loss: str = "edl"
    """Loss: "cross_entropy", a pretrained loss's name, or the path of a loss file."""
    dataset: str = "auto"
    """Data: cifar10, digits, or auto (CIFAR-10 where it can be had, digits otherwise)."""
    data_dir: str | None = None
    """TFDS directory that holds the prepared data; else TFDS_DATA_DIR, else TFDS's default."""
    train_examples: int | None = None
    """Use only the first so many training images; None for all."""
    val_examples: int = 0
    """Hold out so many images of the training split; accuracy curves then show them."""
    test_examples: int | None = None
    """Use only the first so many test images; None for all."""
    model: str = "resnet8"
    """Architecture: resnet8, resnet20 or resnet18."""
    width: int | None = None
    """Channels of the first stage; None for the architecture's own (16, 16 and 64)."""
    epochs: int = 6
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step; an epoch's last incomplete batch is dropped."""
    learning_rate: float = 0.1
    """Peak of the schedule: linear warm-up from 0, then cosine decay to 0."""
    warmup_epochs: float = 1.0
    """Length of the warm-up, in epochs."""
    momentum: float = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty's gradient factor, on every parameter."""
    augment: bool = True
    """Random crops, and flips where mirrored images keep their meaning."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""

    def __post_init__(self) -> None:
        check_loss_name(self.loss)
        check_choice(self, "dataset", DATASETS)
        check_choice(self, "model", MODELS)
        for field in ("train_examples", "test_examples", "width"):
            if getattr(self, field) is not None:
                check_whole(self, field, 1)
        check_whole(self, "val_examples", 0)
        check_whole(self, "epochs", 1)
        check_whole(self, "batch_size", 1)
        check_range(self, "learning_rate", 0, open_low=True)
        check_range(self, "warmup_epochs", 0, self.epochs)
        check_range(self, "momentum", 0, 1)
        check_range(self, "weight_decay", 0)
        check_whole(self, "seed", 0, MAX_SEED)
