"""Evolved losses beside cross-entropy and baselines on 10,000 CIFAR-10 images, ResNet-8, 6 epochs.

Each takes the best of four learning rates by 2,000 other images of the train split; they are
compared on the test images over 10 seeds that no search has used.

Command:  edl compare --config configs/compare_cifar10_subset.py --run-dir runs/subset \
              --train.data.data-dir DIR
Time:     a training of 60,000 images takes a second on an H200, and two minutes on 2 CPU cores.
Result:   see results/cifar10_subset/.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        losses=(
            "cross_entropy",
            "label_smoothing",
            "poly(epsilon=4.0)",
            "results/search/ranking.safetensors",
            "results/search/underfit.safetensors",
        ),
        num_seeds=10,
        learning_rates=(0.2, 0.4, 0.8, 1.6),
        tuning_seeds=2,
        train=TrainConfig(
            epochs=6,
            seed=2000,
            data=DataConfig(name="cifar10", train_examples=10_000, val_examples=2_000),
        ),
    )
