"""Evolved losses beside cross-entropy and baselines on CIFAR-10, ResNet-8, each at its best rate.

45,000 images, 10 epochs; learning rates are chosen on the other 5,000, losses are compared on the
test images over 10 seeds that no search has used.

Command:  edl compare --config configs/compare_cifar10_full.py --run-dir runs/full \
              --train.data.data-dir DIR
Time:     a training of 450,000 images takes 3 s on an H200, and about 12 minutes on 2 CPU cores.
Result:   evolved losses 0.38 to 0.65 points above cross-entropy, poly 0.84; see
          results/cifar10_full/, and results/recipes/ for what is left of it beside another rate.
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
            # The best static baseline of results/static_losses, label smoothing apart, and the one
            # whose stronger form was best in results/search.
            "poly",
            "poly(epsilon=4.0)",
            "results/search/ranking.safetensors",
            "results/search/tasks.safetensors",
            "results/search/underfit.safetensors",
            "results/search/underfit_snes.safetensors",
        ),
        num_seeds=10,
        learning_rates=(0.1, 0.2, 0.4, 0.8),
        tuning_seeds=2,
        train=TrainConfig(
            epochs=10, seed=2000, data=DataConfig(name="cifar10", val_examples=5_000)
        ),
    )
