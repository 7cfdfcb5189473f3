"""The evolved loss beside cross-entropy, ResNet-18 on all of CIFAR-10, 5 seeds, for a GPU or TPU.

Command:  edl compare --config configs/compare_resnet18.py --run-dir runs/compare_resnet18 \
              --train.data.data-dir DIR
Time:     not measured yet. It is 10 times what train_resnet18.py takes.
Result:   not measured yet.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration: the training is that of `train_resnet18.py`."""
    return CompareConfig(
        losses=("cross_entropy", "edl"),
        num_seeds=5,
        train=TrainConfig(
            model="resnet18", epochs=100, warmup_epochs=5, data=DataConfig(name="cifar10")
        ),
    )
