"""The evolved loss beside cross-entropy and two baselines on all of CIFAR-10, ResNet-8, 5 seeds.

Command:  edl compare --config configs/compare_cifar10_full.py --run-dir runs/full \
              --train.data-dir DIR
Time:     not measured yet; its 20 trainings of 500,000 images take about 8 hours at 350 images/s.
Result:   not measured yet.
"""

from edl_jax import TrainConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        # poly is the best static baseline of results/static_losses, label smoothing apart.
        losses=("cross_entropy", "label_smoothing", "poly", "edl"),
        num_seeds=5,
        train=TrainConfig(dataset="cifar10", model="resnet8", width=16, epochs=10),
    )
