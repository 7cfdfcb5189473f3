"""Losses with 40 % of the training labels wrong: CIFAR-10, ResNet-8, 10 epochs, 5 seeds.

Each takes the best of four learning rates by 5,000 train images that are held out, whose labels are
right.

Command:  edl compare --config configs/compare_label_noise.py --run-dir runs/noise \
              --train.data.data-dir DIR
Time:     a training of 450,000 images takes 3 s on an H200, and about 12 minutes on 2 CPU cores.
Result:   results/label_noise_full/; of 10,000 images results/label_noise/.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        losses=(
            "cross_entropy",
            "gce",
            "sce",
            "results/search/sur_noise_many.safetensors",
            "results/search/constant_noise_many.safetensors",
            "results/search/gen_noise_many.safetensors",
        ),
        num_seeds=5,
        learning_rates=(0.1, 0.2, 0.4, 0.8),
        train=TrainConfig(
            epochs=10,
            seed=2000,
            data=DataConfig(
                name="cifar10", val_examples=5_000, label_noise="symmetric", noise_rate=0.4
            ),
        ),
    )
