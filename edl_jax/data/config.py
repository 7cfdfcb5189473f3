"""Which images a training sees."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from edl_jax.checked import Checked, Count, Seed
from edl_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Which images a training sees; a `ConfigError` names the first field that cannot work.

    Validation images are taken out of the train split first; the rest is cut to `train_examples`,
    made imbalanced, then given wrong labels. Validation and test images stay as they are.
    """

    name: Annotated[str, MinLen(1)] = "auto"
    """Data set: any image classification set of TFDS (cifar10, cifar100, mnist, imagenette/320px,
    ...), a name in edl_jax.DATASETS (digits, your own), folder:PATH (a folder with one sub-folder
    of images for each class), or auto (CIFAR-10 where it can be had, digits otherwise)."""
    data_dir: str | None = None
    """TFDS directory that holds the prepared data, the one that contains cifar10/, on a local file
    system; default: TFDS_DATA_DIR, else TFDS's own. With auto, it rules digits out."""
    train_examples: Count | None = None
    """Number of training images, the first of the train split; default: all."""
    val_examples: Annotated[int, Ge(0)] = 0
    """Number of images of the train split, chosen at random, to hold out for validation."""
    test_examples: Count | None = None
    """Number of test images, the first of the test split; default: all."""
    split_seed: Seed = 0
    """Seed of the choice of validation images."""
    image_size: Count | None = None
    """Side in pixels of the square to which images are resized and cropped; default: unchanged."""
    stream: bool | None = None
    """Whether to read images while training; default: if the training images would fill more than a
    quarter of the device's memory."""
    label_noise: Literal["none", "symmetric", "asymmetric"] = "none"
    """Wrong training labels: none, symmetric (any other class), or asymmetric (one similar class,
    with CIFAR-10)."""
    noise_rate: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of each class's training labels to make wrong; with asymmetric noise, of each class
    that is taken for another (five of CIFAR-10's ten)."""
    imbalance: Literal["none", "exponential", "step"] = "none"
    """Imbalance of the training classes."""
    imbalance_factor: Annotated[float, Ge(1)] = 100.0
    """Size of the largest training class over that of the smallest, with imbalance."""
    noise_seed: Seed = 0
    """Seed of label noise and imbalance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_noise == "none" and self.noise_rate > 0:
            raise ConfigError(
                f"DataConfig.noise_rate is {self.noise_rate!r} without noise; expected 0, or "
                "label_noise to be symmetric or asymmetric."
            )
