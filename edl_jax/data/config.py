"""Which images a training sees."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from edl_jax.checked import Checked, Count, Seed
from edl_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Data set, splits and label noise of a training run.

    Validation images are taken from the train split first. The rest is cut to `train_examples`,
    made imbalanced, and then given wrong labels. Validation and test images stay unchanged.

    Raises:
      ConfigError: for an invalid field; the message names the first one.
    """

    name: Annotated[str, MinLen(1)] = "auto"
    """Data set: any TFDS image classification set, such as cifar10; a name in edl_jax.DATASETS,
    such as digits; folder:PATH (a folder with one subfolder of images per class); or auto (CIFAR-10
    if available, otherwise digits)."""
    data_dir: str | None = None
    """TFDS directory with the prepared data (the one that contains cifar10/), on a local file
    system; default: TFDS_DATA_DIR, otherwise TFDS's own default. With name auto, it rules out
    digits."""
    train_examples: Count | None = None
    """Number of training images, taken from the start of the train split; default: all."""
    val_examples: Annotated[int, Ge(0)] = 0
    """Number of random images of the train split to hold out for validation."""
    test_examples: Count | None = None
    """Number of test images, taken from the start of the test split; default: all."""
    split_seed: Seed = 0
    """Seed for choosing the validation images."""
    image_size: Count | None = None
    """Side length in pixels of the square that images are resized and cropped to; default:
    unchanged."""
    stream: bool | None = None
    """Read images during training instead of keeping them on the device; default: only if the
    training images would fill more than a quarter of the device's memory."""
    label_noise: Literal["none", "symmetric", "asymmetric"] = "none"
    """Wrong training labels: none, symmetric (any other class), or asymmetric (one similar class;
    CIFAR-10 only)."""
    noise_rate: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of wrong labels in each training class. Asymmetric noise affects only the classes that
    have a similar one (five of CIFAR-10's ten)."""
    imbalance: Literal["none", "exponential", "step"] = "none"
    """Class imbalance of the training images."""
    imbalance_factor: Annotated[float, Ge(1)] = 100.0
    """Ratio of the largest training class to the smallest; needs imbalance."""
    noise_seed: Seed = 0
    """Seed of label noise and imbalance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_noise == "none" and self.noise_rate > 0:
            raise ConfigError(
                f"DataConfig.noise_rate is {self.noise_rate!r} without noise; expected 0, or "
                "label_noise to be symmetric or asymmetric."
            )
        if self.imbalance == "none" and self.imbalance_factor != DataConfig.imbalance_factor:
            raise ConfigError(
                f"DataConfig.imbalance_factor is {self.imbalance_factor!r} without imbalance; "
                "expected 100, or imbalance to be exponential or step."
            )
