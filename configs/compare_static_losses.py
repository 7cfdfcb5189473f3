"""Every static baseline and the evolved loss beside cross-entropy, each at its best learning rate.

10,000 CIFAR-10 images, ResNet-8, 6 epochs, 5 seeds. Each loss takes the best of four learning
rates by 2,000 other images of the train split, with a seed that the comparison does not use.

Command:  edl compare --config configs/compare_static_losses.py --run-dir runs/static \
              --train.data.data-dir DIR
Time:     about 5 hours on 2 CPU cores: 162 trainings of 2 minutes.
Result:   see results/static_losses/.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        losses=("cross_entropy", "edl", "static"),
        num_seeds=5,
        learning_rates=(0.2, 0.4, 0.8, 1.6),
        tuning_seeds=1,
        train=TrainConfig(
            epochs=6, data=DataConfig(name="cifar10", train_examples=10_000, val_examples=2_000)
        ),
    )
