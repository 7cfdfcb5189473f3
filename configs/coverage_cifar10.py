"""Outputs of trainings on the whole of CIFAR-10 beside the synthetic pairs: ResNet-8, 10 epochs.

Command:  edl coverage --config configs/coverage_cifar10.py --run-dir runs/coverage \
              --train.data.data-dir DIR
Time:     see results/README.md; 1 million images through ResNet-8.
Result:   of version 0.1.0 see results/transfer_cifar10/. One training of each loss: the spread
          over seeds is that of coverage_cifar10_subset.py.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CoverageConfig


def get_config() -> CoverageConfig:
    """The study's configuration."""
    return CoverageConfig(
        losses=("cross_entropy", "edl"),
        epochs=(0, 1, 2, 5, 10),
        num_seeds=1,
        train=TrainConfig(epochs=10, data=DataConfig(name="cifar10")),
    )
