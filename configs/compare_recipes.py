"""An evolved loss (`underfit`) beside cross-entropy under a recipe of your own: CIFAR-10, 5 seeds.

What results/recipes has is this with `--num-seeds 3` and one flag each: `--train.model resnet20`,
`--train.learning-rate 0.1` and `--train.learning-rate 0.4`. `--train.batch-size` and
`--train.epochs` halved and doubled are the others that were planned.

Command:  edl compare --config configs/compare_recipes.py --run-dir runs/recipe \
              --train.data.data-dir DIR
Time:     a training of 450,000 images takes 3 s on an H200, and about 12 minutes on 2 CPU cores.
Result:   see results/recipes/.
"""

from edl_jax import TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.studies import CompareConfig


def get_config() -> CompareConfig:
    """The comparison's configuration."""
    return CompareConfig(
        losses=("cross_entropy", "results/search/underfit.safetensors"),
        num_seeds=5,
        train=TrainConfig(
            epochs=10,
            learning_rate=0.2,
            seed=2000,
            data=DataConfig(name="cifar10", val_examples=5_000),
        ),
    )
