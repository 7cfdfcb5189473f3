"""Outputs of trainings on the whole of CIFAR-10 beside the synthetic pairs: ResNet-8, 10 epochs.

Command:  edl transfer --config configs/transfer_cifar10.py --run-dir runs/transfer \
              --train.data-dir DIR
Time:     not measured. It is 2 million images through ResNet-8.
Result:   not measured yet.
"""

from edl_jax import TrainConfig
from edl_jax.studies import TransferConfig


def get_config() -> TransferConfig:
    """The study's configuration."""
    return TransferConfig(
        losses=("cross_entropy", "edl"),
        epochs=(0, 1, 2, 5, 10),
        num_seeds=2,
        train=TrainConfig(dataset="cifar10", epochs=10),
    )
