"""The evolved loss beside cross-entropy on 10,000 CIFAR-10 images, ResNet-8, 6 epochs, 5 seeds.

Command:  edl compare --config configs/compare_cifar10_subset.py --run-dir runs/subset \
              --train.data-dir DIR
Time:     43 minutes on 2 CPU cores beside other work.
Result:   see results/cifar10_subset/.
"""

from edl_jax import TrainConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        losses=("cross_entropy", "edl"),
        num_seeds=5,
        train=TrainConfig(dataset="cifar10", train_examples=10_000, epochs=6),
    )
