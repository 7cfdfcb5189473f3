"""Losses on validation images, to choose among: all of CIFAR-10 in small, 45,000 and 5,000 images.

Images of 16 x 16, ResNet-8 of width 8, 6 epochs: an eighth of the time of the full comparison.

Command:  edl compare --config configs/screen_losses.py --run-dir runs/screen \
              --train.data-dir DIR
Time:     not measured yet; a training takes about 80 s where two run side by side.
Result:   not measured yet.
"""

from edl_jax import TrainConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        losses=("cross_entropy", "label_smoothing", "poly(epsilon=4.0)", "gce(q=0.2)", "edl"),
        num_seeds=5,
        split="val",
        train=TrainConfig(
            dataset="cifar10",
            val_examples=5_000,
            image_size=16,
            width=8,
            epochs=6,
            learning_rate=0.4,
            seed=1000,  # far from the seeds of the comparisons that are to be reported
        ),
    )
