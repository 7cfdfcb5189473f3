"""The configuration of a training: an ordinary CIFAR recipe (He et al. 2016, with Nesterov)."""

import dataclasses
from typing import Any

from edl_jax.data.augmentation import Augmentation
from edl_jax.data.corruption import Corruption
from edl_jax.errors import ConfigError
from edl_jax.losses import COSINE_LOSSES
from edl_jax.losses.by_name import check_loss_name, split_loss_name
from edl_jax.models.by_name import MODELS
from edl_jax.training.optimizers import make_optimizer
from edl_jax.validation import MAX_SEED, check_choice, check_range, check_types, check_whole

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a classifier is trained. Checked when made.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    loss: str = "edl"
    """Loss: a name that `edl losses` lists, with options if you like, such as `focal(gamma=3)`; or
    the path of a loss file."""
    dataset: str = "auto"
    """Data: any image classification set of TFDS, a name in edl_jax.DATASETS (digits, your own), or
    auto (CIFAR-10 where it can be had, digits otherwise)."""
    data_dir: str | None = None
    """TFDS directory that holds the prepared data; else TFDS_DATA_DIR, else TFDS's default."""
    train_examples: int | None = None
    """Use only the first so many training images; None for all."""
    val_examples: int = 0
    """Hold out so many images of the training split; accuracy curves then show them."""
    test_examples: int | None = None
    """Use only the first so many test images; None for all."""
    split_seed: int = 0
    """Seed of the choice of validation images."""
    image_size: int | None = None
    """Side in pixels to which images are resized, and cut where they are not square; None: as they
    are."""
    stream: bool | None = None
    """Read images while training instead of keeping all on the device; None: if they do not fit."""
    label_noise: str = "none"
    """Wrong training labels: none, symmetric, or asymmetric (CIFAR's usual flips)."""
    noise_rate: float = 0.0
    """Share of each class's training labels that are wrong; with asymmetric noise, of each class
    that is taken for another (five of CIFAR-10's ten)."""
    imbalance: str = "none"
    """Imbalance of the training classes: none, exponential or step."""
    imbalance_factor: float = 100.0
    """Size of the largest training class over that of the smallest."""
    corruption_seed: int = 0
    """Seed of label noise and imbalance."""
    augmentation: Augmentation = Augmentation()
    """Random changes to training images."""
    model: str = "resnet8"
    """Architecture: resnet8 to resnet56, resnet18, resnet34, resnet50, wrn_16_8, wrn_28_10 or
    vit_tiny."""
    width: int | None = None
    """Channels of the first stage; None for the architecture's own."""
    head_scale: float | None = None
    """A head of cosines times this scale, for margin losses (30 is usual); None: a linear head."""
    sync_batch_norm: bool = False
    """Batch statistics over the batch of all devices instead of each device's own share."""
    precision: str = "auto"
    """Compute dtype: float32, bfloat16, or auto (bfloat16 on accelerators). State is float32."""
    epochs: int = 6
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, on all devices together; an epoch's last incomplete batch is dropped."""
    accumulate: int = 1
    """Parts of a batch whose gradients are computed one after the other, to save memory."""
    optimizer: str = "sgd"
    """An optimiser of optax."""
    optimizer_options: dict[str, float | bool | str | None] | None = None
    """Its own settings by name; None: momentum 0.9 and nesterov for sgd, else optax's defaults."""
    learning_rate: float = 0.1
    """Peak of the schedule: linear warm-up, step t of w at (t + 1) / w, then cosine decay to 0."""
    warmup_epochs: float = 1.0
    """Length of the warm-up, in epochs."""
    weight_decay: float = 5e-4
    """The optimiser's own decay where it has one (adamw), else an L2 penalty's gradient factor."""
    clip_norm: float | None = None
    """Largest Euclidean norm of the gradient; None: it is not clipped."""
    ema_decay: float = 0.0
    """Evaluate an exponential moving average of the weights with this decay; 0: the weights."""
    seed: int = 0
    """Seed of initial weights, data order and augmentation."""
    steps_per_chunk: int = 100
    """Steps between two reports, looks for SIGTERM and looks for divergence."""
    keep_checkpoints: int = 2
    """Checkpoints kept in a run folder, besides the best."""

    def __post_init__(self) -> None:
        check_types(self)
        check_loss_name(self.loss)
        if not self.dataset:
            raise ConfigError(
                f"TrainConfig.dataset is {self.dataset!r}; expected the name of a data set."
            )
        check_choice(self, "model", MODELS)
        check_choice(self, "precision", PRECISIONS)
        for field in ("train_examples", "test_examples", "width", "image_size"):
            if getattr(self, field) is not None:
                check_whole(self, field, 1)
        for field in ("epochs", "batch_size", "accumulate", "steps_per_chunk", "keep_checkpoints"):
            check_whole(self, field, 1)
        check_whole(self, "val_examples", 0)
        for field in ("seed", "split_seed"):
            check_whole(self, field, 0, MAX_SEED)
        for field in ("head_scale", "clip_norm"):
            if getattr(self, field) is not None:
                check_range(self, field, 0, open_low=True)
        check_range(self, "learning_rate", 0, open_low=True)
        check_range(self, "warmup_epochs", 0, self.epochs)
        check_range(self, "weight_decay", 0)
        check_range(self, "ema_decay", 0, 1, open_high=True)
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"TrainConfig.accumulate is {self.accumulate} with a batch_size of "
                f"{self.batch_size}; expected a divisor of it."
            )
        if split_loss_name(self.loss)[0] in COSINE_LOSSES and self.head_scale is None:
            raise ConfigError(
                f"TrainConfig.loss is {self.loss!r}, whose margins are of angles; expected a "
                "head_scale with it, such as 30."
            )
        check_whole(self, "corruption_seed", 0, MAX_SEED)
        Corruption(self.label_noise, self.noise_rate, self.imbalance, self.imbalance_factor)
        self.make_optimizer(self.learning_rate)

    def make_optimizer(self, learning_rate: Any) -> Any:
        """The optimiser that the configuration names, with a learning rate or a schedule."""
        options = self.optimizer_options
        if options is None:
            options = {"momentum": 0.9, "nesterov": True} if self.optimizer == "sgd" else {}
        return make_optimizer(
            self.optimizer,
            options,
            learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )
