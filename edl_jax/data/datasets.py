"""Data sets by name, divided into three parts."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from edl_jax.checked import config_or_default
from edl_jax.data.arrays import (
    Array,
    LazyArray,
    UnavailableError,
    content_digest,
    read_chunks,
    read_rows,
)
from edl_jax.data.config import DataConfig
from edl_jax.data.label_noise import asymmetric_targets, imbalanced_rows, noisy_labels
from edl_jax.data.sources import DATASETS, ArraySource, find_images, read_folder
from edl_jax.data.tfds_source import open_tfds, prepared_files
from edl_jax.errors import ConfigError, DataError
from edl_jax.runs.storage import user_path

_FOLDER = "folder:"
_STATISTICS_IMAGES = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images `[n, h, w, c]` uint8 and labels `[n]` int32 in three parts that do not overlap.

    Arrays are read-only. All images are `LazyArray`s where they are read while training.
    """

    name: str  # in `DATASETS`, or the one that TFDS has for it
    train_images: Array
    train_labels: np.ndarray
    val_images: Array
    val_labels: np.ndarray
    test_images: Array
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    crop_padding: int  # of the usual random crop, in pixels: an eighth of the shorter side
    flip: bool  # whether mirrored images keep their meaning; false for characters, such as digits
    source: str  # a sentence that says where the images come from and why
    mean: np.ndarray  # of each channel of the train images, in units of 0..1, `[c]` float32
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
        return isinstance(self.train_images, LazyArray)

    @functools.cached_property
    def digest(self) -> str:
        """What tells these images and labels from others of the same name, 16 hexadecimal digits.

        It covers labels, pixels, names of the classes, crop padding and flip; of streamed images,
        the digest of their source (of TFDS files: names and sizes) and the chosen rows.
        """
        about = [*map(str, self.class_names), self.crop_padding, self.flip]
        images = (self.train_images, self.val_images, self.test_images)
        return content_digest(about, self.train_labels, self.val_labels, self.test_labels, *images)

    @property
    def identity(self) -> dict[str, str]:
        """Name and digest, by which a run folder knows its data."""
        return {"name": self.name, "digest": self.digest}


def load_dataset(config: DataConfig | None = None, source: ArraySource | None = None) -> Dataset:
    """Load the data set that a configuration names, or another source in its place.

    The last two are kept in memory: the same configuration and data give the same object again. A
    data set of TFDS that is not prepared is downloaded and prepared; its test split is TFDS's
    "test", or "validation" where there is none with labels. A `ConfigError` names what does not fit
    the data set, a `DataError` what cannot be prepared or read.
    """
    config = config_or_default(config, DataConfig)
    name, size = config.name, config.image_size
    if source is not None or name in DATASETS:
        chosen = DATASETS[name]() if source is None else source
        if not isinstance(chosen, ArraySource):
            raise DataError(f"data set {name!r} is made as {chosen!r}; expected an ArraySource.")
        key = (chosen.name, chosen.description, chosen.digest)
        origin = _Origin(key, lambda: chosen.resized(size))
    elif name.startswith(_FOLDER):
        folder = user_path(name.removeprefix(_FOLDER))
        files = find_images(folder)
        try:
            stats = [(path, path.stat()) for paths in files.values() for path in paths]
        except OSError as error:  # such as of a link to nothing
            raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from error
        key = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
        origin = _Origin(key, lambda: read_folder(folder, files, size))
    else:
        tfds_name = "cifar10" if name == "auto" else name
        may_replace = name == "auto" and config.data_dir is None
        place = config.data_dir
        if place is None:
            place = os.environ.get("TFDS_DATA_DIR") or None
        directory = None if place is None else str(user_path(place))
        origin = _Origin(
            (name, directory, may_replace, prepared_files(tfds_name, directory)),
            lambda: _prepared(tfds_name, directory, size, may_replace),
        )
    return _load(origin, dataclasses.replace(config, data_dir=None))  # the origin knows it


@dataclasses.dataclass(frozen=True)
class _Origin:
    """A source that is equal to another if their keys are, whoever opens it."""

    key: tuple[Any, ...]
    open: Callable[[], ArraySource] = dataclasses.field(compare=False)


def _prepared(name: str, directory: str | None, size: int | None, may_replace: bool) -> ArraySource:
    """A set of TFDS, or the digits where it cannot be had and they may take its place."""
    try:
        return open_tfds(name, directory, size)
    except UnavailableError as error:
        if not may_replace:
            raise DataError(
                f"{error} Set data_dir to the directory that contains {name.split('/')[0]}/, allow "
                "the download, or use 'digits'."
            ) from error
        digits = DATASETS["digits"]().resized(size)
        return dataclasses.replace(digits, description=f"{digits.description} ({error})")


@functools.lru_cache(maxsize=2)  # each has arrays of its own
def _load(origin: _Origin, config: DataConfig) -> Dataset:
    """Choose the three parts, change the train part as asked for and measure it."""
    source = origin.open()
    splits = source.arrays | {"val": source.arrays["train"]}
    rows = _rows(config, source.name, len(splits["train"][1]), len(splits["test"][1]))
    labels = {part: read_rows(splits[part][1], chosen) for part, chosen in rows.items()}
    for part, found in labels.items():
        source.check_labels(part, found)
    train, num_classes, seed = labels["train"], len(source.class_names), config.noise_seed
    if config.imbalance != "none":
        profile, factor = config.imbalance, config.imbalance_factor
        kept = imbalanced_rows(train, num_classes, profile=profile, factor=factor, seed=seed)
        rows["train"], train = rows["train"][kept], train[kept]
    if config.label_noise != "none":
        is_asymmetric = config.label_noise == "asymmetric"
        targets = asymmetric_targets(source.class_names) if is_asymmetric else None
        train = noisy_labels(train, num_classes, targets, rate=config.noise_rate, seed=seed)
    labels["train"] = train
    stream = config.stream
    if stream is None:
        stream = not fits_device(len(rows["train"]) * int(np.prod(source.image_shape)))
    read = _lazy_rows if stream else read_rows
    arrays: dict[str, Any] = {f"{part}_labels": x.astype(np.int32) for part, x in labels.items()}
    arrays |= {f"{part}_images": read(splits[part][0], chosen) for part, chosen in rows.items()}
    arrays["mean"], arrays["std"] = channel_statistics(arrays["train_images"])
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


def fits_device(num_bytes: int) -> bool:
    """Whether images of this size leave the device three quarters of its memory."""
    # On the CPU, where JAX names no limit, the machine's memory counts.
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 4 * num_bytes <= limit


def channel_statistics(images: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, of 10,000 evenly spaced images at most."""
    count = min(len(images), _STATISTICS_IMAGES)
    levels, counts = np.arange(256.0), np.zeros((images.shape[-1], 256), np.int64)
    for chunk in read_chunks(images, np.arange(count) * len(images) // count):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(chunk[..., channel].ravel(), minlength=256)
    pixels = count * images.shape[1] * images.shape[2]
    mean = counts @ levels / pixels
    variance = counts @ levels**2 / pixels - mean**2  # exactly 0 where all pixels are alike
    std = np.sqrt(np.where(variance > 0, variance, 255.0**2))  # 1, so that one can divide
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def _lazy_rows(array: Array, rows: np.ndarray) -> LazyArray:
    """The rows, read when they are indexed."""
    if isinstance(array, LazyArray):
        return dataclasses.replace(array, rows=array.rows[rows])
    digest = content_digest(None, array)
    return LazyArray(rows, array.shape[1:], array.dtype, array.__getitem__, digest)


def _rows(config: DataConfig, name: str, num_train: int, num_test: int) -> dict[str, np.ndarray]:
    """The rows of each part in its split, increasing."""
    val = config.val_examples
    train = num_train - val if config.train_examples is None else config.train_examples
    test = num_test if config.test_examples is None else config.test_examples
    if train < 1 or train + val > num_train or test > num_test:
        raise ConfigError(
            f"train_examples is {config.train_examples}, val_examples {val} and test_examples "
            f"{config.test_examples}; {name} has {num_train} for train and validation together "
            f"and {num_test} for test: expected no more, and at least 1 for train and for test."
        )
    held_out = np.zeros(num_train, bool)
    held_out[np.random.default_rng(config.split_seed).permutation(num_train)[:val]] = True
    return {
        "train": np.flatnonzero(~held_out)[:train],
        "val": np.flatnonzero(held_out),
        "test": np.arange(test),
    }
