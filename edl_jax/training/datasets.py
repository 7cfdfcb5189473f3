"""Data sets for training: images and labels in three parts, by name."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from edl_jax.errors import ConfigError, DataError
from edl_jax.training.corruption import (
    Corruption,
    asymmetric_noise,
    asymmetric_targets,
    imbalanced_rows,
    symmetric_noise,
)
from edl_jax.training.optional import UnavailableError
from edl_jax.training.sources import DATASETS, ArraySource, ImageSource
from edl_jax.training.streaming import Images, StreamedImages, fits_device, read_chunks
from edl_jax.training.tfds_catalog import open_tfds
from edl_jax.validation import MAX_SEED, check_types, check_whole

_STATISTICS_IMAGES = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three parts that do not overlap; the arrays are read-only.

    Attributes:
      name: the name in `DATASETS`, such as "digits", or the one that TFDS has for it.
      train_images: `[n, h, w, c]`, uint8: an array, or `StreamedImages` where they are read while
        training; likewise `val_images` and `test_images`, of the same type.
      train_labels: `[n]`, int32, in `[0, num_classes)`; likewise `val_labels` and `test_labels`.
      class_names: names of the classes, by label.
      crop_padding: padding of the usual random crop, in pixels: an eighth of the shorter side, so
        4 at 32 pixels.
      flip: whether mirrored images keep their meaning: true except for data sets of characters
        (digits, MNIST, SVHN and their like).
      source: a sentence that says where the images come from and why.
      mean: mean of each channel of the train images in units of 0..1, `[c]`, float32; of 10,000
        evenly spaced ones if there are more.
      std: standard deviation likewise.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray
    val_images: Images
    val_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    crop_padding: int
    flip: bool
    source: str
    mean: np.ndarray
    std: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> np.ndarray:
        """Train examples of each class by their (perhaps wrong) labels, `[num_classes]`, int64."""
        return np.bincount(self.train_labels, minlength=self.num_classes)

    @property
    def streamed(self) -> bool:
        """Whether the images are read while training instead of being in memory."""
        return isinstance(self.train_images, StreamedImages)


@dataclasses.dataclass(frozen=True)
class Parts:
    """How many examples each part has and how they are chosen; checked when made."""

    train_examples: int | None
    val_examples: int
    test_examples: int | None
    split_seed: int
    image_size: int | None

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, "split_seed", 0, MAX_SEED)
        if self.image_size is not None:
            check_whole(self, "image_size", 1)

    def rows(self, name: str, num_train: int, num_test: int) -> dict[str, np.ndarray]:
        """The rows of each part in its split, increasing."""
        val = self.val_examples
        train = num_train - val if self.train_examples is None else self.train_examples
        test = num_test if self.test_examples is None else self.test_examples
        if min(train, test, val + 1) < 1 or train + val > num_train or test > num_test:
            raise ConfigError(
                f"train_examples is {self.train_examples}, val_examples {val} and test_examples "
                f"{self.test_examples}; {name} has {num_train} for train and validation together "
                f"and {num_test} for test: expected no more, and at least 1 for train and for test."
            )
        held_out = np.zeros(num_train, bool)
        chosen = np.random.default_rng(self.split_seed).permutation(num_train)[:val]
        held_out[chosen] = True
        return {
            "train": np.flatnonzero(~held_out)[:train],
            "val": np.flatnonzero(held_out),
            "test": np.arange(test),
        }


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_examples: int | None = None,
    val_examples: int = 0,
    test_examples: int | None = None,
    split_seed: int = 0,
    image_size: int | None = None,
    label_noise: str = "none",
    noise_rate: float = 0.0,
    imbalance: str = "none",
    imbalance_factor: float = 100.0,
    corruption_seed: int = 0,
    stream: bool | None = None,
) -> Dataset:
    """Loads a data set, once per process for the same arguments.

    A data set that is not prepared is downloaded and prepared by TFDS. Decoded images are kept
    beside the prepared data, or in the user's cache folder where that cannot be written. The train
    part is chosen (validation held out, then the first of the rest), then made imbalanced, then
    given wrong labels; validation and test stay as they are.

    Args:
      name: an image classification set of TFDS, such as "cifar10", "cifar100", "mnist" or
        "imagenette/320px"; a name in `DATASETS`: "digits" (scikit-learn's 1,797 grey images of
        8x8) or your own; or "auto", CIFAR-10 where it is prepared or can be downloaded, and digits
        where it is not. The test split is TFDS's "test", or "validation" where there is none with
        labels.
      data_dir: TFDS directory, the one that contains `cifar10/`. Default: the environment's
        `TFDS_DATA_DIR`, or else TFDS's own. With "auto", naming a directory rules digits out.
      train_examples: the first so many that validation leaves of the (shuffled) train split; None
        is all.
      val_examples: so many of the train split, chosen at random.
      test_examples: the first so many of the test split; None is all.
      split_seed: of the choice of the validation examples.
      image_size: side of the square to which images are resized and cropped; None is the data
        set's own size, if it has one.
      label_noise: wrong train labels: "none"; "symmetric", uniformly any other class; or
        "asymmetric", a similar class, for CIFAR-10 and CIFAR-100. See `corruption`.
      noise_rate: share of each class's train labels that are wrong; with asymmetric noise, of each
        class that is taken for another, on CIFAR-10 five of ten.
      imbalance: class counts of the train part: "none", "exponential" or "step".
      imbalance_factor: largest over smallest class count; not looked at without imbalance.
      corruption_seed: of which labels are wrong and which images are left out.
      stream: whether images are read while training. None: if the train images fill more than a
        quarter of the device's memory.

    Returns:
      The data set.

    Raises:
      ConfigError: the name is unknown or of no set of labelled images, more examples are asked
        for than there are, or another argument cannot work.
      DataError: the data set is neither prepared nor to be prepared, the files are damaged, or an
        optional dependency is missing.

    References:
      Krizhevsky, "Learning multiple layers of features from tiny images", 2009;
      Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
    """
    if not isinstance(name, str):
        raise ConfigError(f"the data set is {name!r}; expected its name, such as 'cifar10'.")
    directory = os.environ.get("TFDS_DATA_DIR") if data_dir is None else os.fspath(data_dir)
    parts = Parts(train_examples, val_examples, test_examples, split_seed, image_size)
    corruption = Corruption(label_noise, noise_rate, imbalance, imbalance_factor, corruption_seed)
    may_replace = name == "auto" and data_dir is None
    return _load(name, directory or None, parts, corruption, stream, may_replace)


@functools.cache
def _load(
    name: str,
    data_dir: str | None,
    parts: Parts,
    corruption: Corruption,
    stream: bool | None,
    may_replace: bool,
) -> Dataset:
    if name in DATASETS:
        return _assemble(_in_memory(name, parts.image_size), parts, corruption, stream)
    found = "cifar10" if name == "auto" else name
    try:
        source: ImageSource = open_tfds(found, data_dir, parts.image_size)
    except UnavailableError as error:
        if not may_replace:
            advice = f"Name the directory that contains {found.split('/')[0]}/, allow the download"
            raise DataError(f"{error}. {advice}, or use 'digits'.") from error
        digits = _in_memory("digits", parts.image_size)
        source = dataclasses.replace(digits, description=f"{digits.description} ({error})")
    return _assemble(source, parts, corruption, stream)


def _in_memory(name: str, image_size: int | None) -> ArraySource:
    source = DATASETS[name]()
    if not isinstance(source, ArraySource):
        raise DataError(f"data set {name!r} is made as {source!r}; expected an ArraySource.")
    return source if image_size is None else source.resized(image_size)


def _assemble(
    source: ImageSource, parts: Parts, corruption: Corruption, stream: bool | None
) -> Dataset:
    """Chooses the three parts, spoils the train part as asked for and measures it."""
    rows = parts.rows(source.name, source.sizes["train"], source.sizes["test"])
    num_classes = len(source.class_names)
    labels = _read_parts(source.labels, rows)
    if corruption.imbalance != "none":
        kept = imbalanced_rows(
            labels["train"],
            num_classes,
            profile=corruption.imbalance,
            factor=corruption.imbalance_factor,
            seed=corruption.seed,
        )
        rows["train"], labels["train"] = rows["train"][kept], labels["train"][kept]
    labels["train"] = _noisy(labels["train"], source, corruption)
    if stream is None:
        stream = not fits_device(len(rows["train"]) * int(np.prod(source.image_shape)))
    if stream:
        images = {
            part: StreamedImages(source, "test" if part == "test" else "train", chosen)
            for part, chosen in rows.items()
        }
    else:
        images = _read_parts(source.images, rows)
    arrays: dict[str, Any] = {f"{part}_labels": values for part, values in labels.items()}
    arrays |= {f"{part}_images": values for part, values in images.items()}
    arrays["mean"], arrays["std"] = _statistics(arrays["train_images"])
    for array in arrays.values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return Dataset(
        name=source.name,
        class_names=source.class_names,
        crop_padding=max(round(min(source.image_shape[:2]) / 8), 1),
        flip=source.flip,
        source=source.description,
        **arrays,
    )


def _read_parts(
    read: Callable[[str, np.ndarray], np.ndarray], rows: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Reads each part; train and validation, which share a split, in one go."""
    shared = read("train", np.concatenate([rows["train"], rows["val"]]))
    num_train = len(rows["train"])
    return {
        "train": shared[:num_train],
        "val": shared[num_train:],
        "test": read("test", rows["test"]),
    }


def _noisy(labels: np.ndarray, source: ImageSource, corruption: Corruption) -> np.ndarray:
    rate, seed = corruption.noise_rate, corruption.seed
    if corruption.label_noise == "symmetric":
        return symmetric_noise(labels, len(source.class_names), rate=rate, seed=seed)
    if corruption.label_noise == "asymmetric":
        targets = asymmetric_targets(source.class_names, source.superclasses())
        return asymmetric_noise(labels, targets, rate=rate, seed=seed)
    return labels


def _statistics(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, exact up to the rounding to float32.

    The deviation of a channel that is the same everywhere is told as 1, so that one can divide.
    """
    count = min(len(images), _STATISTICS_IMAGES)
    channels = images.shape[-1]
    total, squares = np.zeros((2, channels), np.int64)
    for chunk in read_chunks(images, np.arange(count) * len(images) // count):
        # First over the images of a chunk, so few that the sums fit 32 bits, then over pixels.
        levels = chunk.reshape(len(chunk), -1)
        sums = levels.sum(axis=0, dtype=np.uint32)
        total += sums.reshape(-1, channels).sum(axis=0, dtype=np.int64)
        sums = np.square(levels, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        squares += sums.reshape(-1, channels).sum(axis=0, dtype=np.int64)
    pixels = count * images.shape[1] * images.shape[2]
    mean = total / pixels
    variance = squares / pixels - mean**2  # exactly 0 where all pixels are alike
    std = np.sqrt(np.where(variance > 0, variance, 255.0**2))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
