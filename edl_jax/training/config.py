"""The configuration of a training: an ordinary CIFAR recipe (He et al. 2016, with Nesterov)."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from edl_jax.checked import Checked, Count, NotNegative, OneOf, Positive, Seed
from edl_jax.data.augmentation import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError
from edl_jax.losses.by_name import check_loss_name, scale_of
from edl_jax.methods import METHODS  # noqa: F401 - so that they have names
from edl_jax.models import MODELS
from edl_jax.training.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train a classifier. Raises ConfigError, which names the first invalid field."""

    loss: str = "edl"
    """Loss to train with: a name listed by `edl losses`, with options if needed, such as
    `focal(gamma=3)`; a learned loss listed by `edl methods`, such as `elf(generations=5)` (--method
    is the same flag); or the path of a loss file."""
    data: DataConfig = DataConfig()
    """The images and labels."""
    augmentation: Augmentation = Augmentation()
    """Random changes to the training images."""
    model: Annotated[str, OneOf(MODELS)] = "resnet8"
    """Architecture of the classifier: a name in edl_jax.MODELS, such as resnet8 or vit_tiny."""
    width: Count | None = None
    """Channels of the first stage, or token size of a ViT; default: the architecture's own."""
    head_scale: Positive | None = None
    """Scale of a cosine head, for margin losses (30 is usual); default: a linear head."""
    sync_batch_norm: bool = False
    """Compute batch norm statistics over the batch of all devices instead of per device."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype: auto uses bfloat16 on accelerators and float32 on CPUs. State is always
    float32."""
    epochs: Count = 6
    """Number of passes over the training images."""
    batch_size: Count = 128
    """Images per step over all devices; the last incomplete batch of an epoch is dropped."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer, weight decay and gradient clipping."""
    learning_rate: Positive = 0.1
    """Peak learning rate. The rate rises linearly, with (t + 1) / w of the peak at step t of w
    warm-up steps, then decays to 0 by a cosine."""
    warmup_epochs: NotNegative = 1.0
    """Length of the warm-up, in epochs."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of an exponential moving average of the weights, used for evaluation (0 disables
    it)."""
    seed: Seed = 0
    """Seed of the initial weights, data order and augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_name(self.loss)
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"TrainConfig.warmup_epochs is {self.warmup_epochs} with {self.epochs} epochs; "
                "expected at most as many."
            )
        if scale_of(self.loss) == "cosines" and self.head_scale is None:
            raise ConfigError(
                f"TrainConfig.loss is {self.loss!r}, whose margins are of angles; expected a "
                "head_scale with it, such as 30."
            )


def check_validation(config: TrainConfig, dataset: Dataset, who: str) -> None:
    """Refuse data without validation images in memory."""
    if dataset.streamed or not config.data.val_examples:
        raise ConfigError(
            f"{who} looks at validation images, of which there are {config.data.val_examples}"
            f"{', streamed' if dataset.streamed else ''}; expected TrainConfig.data with "
            "val_examples of at least 1, and stream False."
        )
