"""As coverage_cifar10, on 5,000 images of CIFAR-10, 6 epochs, 3 seeds.

Command:  edl coverage --config configs/coverage_cifar10_subset.py --run-dir runs/coverage_subset \
              --train.data.data-dir DIR
Time:     17 minutes on one CPU core.
Result:   of version 0.1.0 see results/transfer_cifar10_subset/.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CoverageConfig


def get_config() -> CoverageConfig:
    """The study's configuration."""
    return CoverageConfig(
        losses=("cross_entropy", "edl"),
        epochs=(0, 1, 2, 4, 6),
        num_seeds=3,
        train=TrainConfig(
            epochs=6, data=DataConfig(name="cifar10", train_examples=5_000, test_examples=2_048)
        ),
    )
