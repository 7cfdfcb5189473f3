"""Losses on validation images, to choose among: ResNet-8, 45,000 images and 5,000, 10 epochs.

No test image is looked at, and the seeds are far from those of any comparison that is reported.

Command:  edl compare --config configs/screen_losses.py --run-dir runs/screen \
              --train.data.data-dir DIR
Time:     a training of 450,000 images takes 3 s on an H200, and about 12 minutes on 2 CPU cores.
Result:   see results/search/.
"""

from pathlib import Path

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration: some baselines, and every candidate in results/search."""
    candidates = sorted(str(path) for path in Path("results/search").glob("*.safetensors"))
    return CompareConfig(
        losses=(
            "cross_entropy",
            "label_smoothing",
            "label_smoothing(alpha=0.2)",
            "poly",
            "poly(epsilon=4.0)",
            "gce(q=0.2)",
            "edl",
            *candidates,
        ),
        num_seeds=6,
        split="val",
        train=TrainConfig(
            epochs=10,
            learning_rate=0.2,
            seed=1000,
            data=DataConfig(name="cifar10", val_examples=5_000),
        ),
    )
