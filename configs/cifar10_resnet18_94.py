"""An ordinary ResNet-18 to 94 % on CIFAR-10 in as few seconds as one GPU allows.

Command:  edl train --config configs/cifar10_resnet18_94.py --run-dir runs/resnet18_94 \
              --data.data-dir DIR
          (and `--loss cross_entropy` for the baseline)
Time:     not measured yet. It is 1.2 million images, 4 x 10^15 FLOP of
          convolutions; `python -m benchmarks.train_throughput` measures a GPU's images/s.
Result:   not measured yet; the aim is a test accuracy of 94 % after the last epoch.
"""

from edl_jax import TrainConfig
from edl_jax.data.augmentation import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.training.optimizers import OptimizerConfig


def get_config() -> TrainConfig:
    """The training configuration."""
    return TrainConfig(
        model="resnet18",
        augmentation=Augmentation(cutout=8),
        precision="bfloat16",
        epochs=24,
        batch_size=512,
        learning_rate=0.4,
        warmup_epochs=5,
        data=DataConfig(name="cifar10"),
        optimizer=OptimizerConfig(weight_decay=5e-4),
    )
