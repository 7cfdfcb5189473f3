"""The configuration of a training: an ordinary CIFAR recipe (He et al. 2016, with Nesterov)."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from edl_jax.checked import Checked, Count, NotNegative, OneOf, Positive, Seed
from edl_jax.data.augmentation import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError
from edl_jax.losses import COSINE_LOSSES
from edl_jax.losses.by_name import check_loss_name, split_loss_name
from edl_jax.models import MODELS
from edl_jax.training.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """How a classifier is trained; a `ConfigError` names the first field that cannot work."""

    loss: str = "edl"
    """Loss: a name that `edl losses` lists, with options if you like, such as `focal(gamma=3)`; or
    the path of a loss file."""
    data: DataConfig = DataConfig()
    """The images and labels."""
    augmentation: Augmentation = Augmentation()
    """Random changes to training images."""
    model: Annotated[str, OneOf(MODELS)] = "resnet8"
    """Architecture of the classifier: one of `edl_jax.models`."""
    width: Count | None = None
    """Channels of the first stage, or size of a token; default: the architecture's own."""
    head_scale: Positive | None = None
    """Scale of a head of cosines, for margin losses (30 is usual); default: a linear head."""
    sync_batch_norm: bool = False
    """Whether batch statistics are over the batch of all devices instead of each device's share."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto is bfloat16 on accelerators, else float32. State is float32."""
    epochs: Count = 6
    """Passes over the training images."""
    batch_size: Count = 128
    """Images per step, on all devices together; an epoch's last incomplete batch is dropped."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser, weight decay and clipping."""
    learning_rate: Positive = 0.1
    """Peak of the schedule: linear warm-up, step t of w at (t + 1) / w, then cosine decay to 0."""
    warmup_epochs: NotNegative = 1.0
    """Length of the warm-up, in epochs."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of an exponential moving average of the weights, which is then evaluated; 0: none."""
    seed: Seed = 0
    """Seed of initial weights, data order and augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_name(self.loss)
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"TrainConfig.warmup_epochs is {self.warmup_epochs} with {self.epochs} epochs; "
                "expected at most as many."
            )
        if split_loss_name(self.loss)[0] in COSINE_LOSSES and self.head_scale is None:
            raise ConfigError(
                f"TrainConfig.loss is {self.loss!r}, whose margins are of angles; expected a "
                "head_scale with it, such as 30."
            )
