"""ResNet-18 on the whole of CIFAR-10 with the shipped loss, for a GPU or TPU.

Command:  edl train --config configs/train_resnet18.py --run-dir runs/resnet18 --data.data-dir DIR
          (and `--loss cross_entropy` for the baseline)
Time:     not measured yet. On 2 CPU cores it takes days.
Result:   not measured yet.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig


def get_config() -> TrainConfig:
    """The training configuration."""
    return TrainConfig(
        model="resnet18", epochs=100, warmup_epochs=5, data=DataConfig(name="cifar10")
    )
