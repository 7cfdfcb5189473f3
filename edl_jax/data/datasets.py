"""Data sets by name, divided into three parts."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from edl_jax.checked import config_or_default
from edl_jax.data.config import DataConfig
from edl_jax.data.dataset import Dataset, channel_statistics
from edl_jax.data.folder import PREFIX, find_images, read_folder
from edl_jax.data.label_noise import (
    asymmetric_noise,
    asymmetric_targets,
    imbalanced_rows,
    symmetric_noise,
)
from edl_jax.data.optional import UnavailableError
from edl_jax.data.sources import DATASETS, ArraySource, ImageSource
from edl_jax.data.streaming import StreamedImages, fits_device
from edl_jax.data.tfds_catalog import open_tfds, prepared_files
from edl_jax.errors import ConfigError, DataError
from edl_jax.runs.storage import user_path


def load_dataset(config: DataConfig | None = None, source: ArraySource | None = None) -> Dataset:
    """Load a data set.

    The last two are kept in memory: the same configuration and data give the same object again. A
    data set of TFDS that is not prepared is downloaded and prepared. Decoded images are kept in the
    user's cache folder, `$XDG_CACHE_HOME/edl_jax` or `~/.cache/edl_jax`. The test split is TFDS's
    "test", or "validation" where there is none with labels.

    Args:
      config: the data set, its parts and what is done to its training labels.
      source: images in place of those that the configuration names.

    Raises:
      ConfigError: if the name is unknown or of no set of labelled images, or there are fewer
        examples than asked for.
      DataError: if the data set cannot be prepared or read, or an optional dependency is missing.

    References:
      Krizhevsky, "Learning multiple layers of features from tiny images", 2009;
      Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
    """
    config = config_or_default(config, DataConfig)
    name, data_dir = config.name, config.data_dir
    place = os.environ.get("TFDS_DATA_DIR") or None if data_dir is None else data_dir
    directory = None if place is None else str(user_path(place))
    if source is not None or name in DATASETS:
        given = _registered(name) if source is None else source
        origin = _Origin((given.name, given.description, given.digest), lambda: given)
    elif name.startswith(PREFIX):
        folder = user_path(name.removeprefix(PREFIX))
        files = find_images(folder)
        stats = [(path, path.stat()) for images in files.values() for _, path in images]
        key = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
        origin = _Origin(key, lambda: read_folder(folder, files, config.image_size))
    else:
        may_replace = name == "auto" and data_dir is None
        found = "cifar10" if name == "auto" else name
        origin = _Origin(
            (name, directory, may_replace, prepared_files(found, directory)),
            lambda: _prepared(found, directory, config.image_size, may_replace),
        )
    return _load(origin, dataclasses.replace(config, data_dir=None))  # the origin knows it


@dataclasses.dataclass(frozen=True)
class _Origin:
    """A source that is equal to another if their keys are, whoever opens it."""

    key: tuple[Any, ...]
    open: Callable[[], ImageSource] = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=2)  # each has arrays of its own
def _load(origin: _Origin, config: DataConfig) -> Dataset:
    source = origin.open()
    size = config.image_size
    if isinstance(source, ArraySource) and size and source.image_shape[:2] != (size, size):
        source = source.resized(size)
    return _assemble(source, config)


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


def _registered(name: str) -> ArraySource:
    source = DATASETS[name]()
    if not isinstance(source, ArraySource):
        raise DataError(f"data set {name!r} is made as {source!r}; expected an ArraySource.")
    return source


def _prepared(
    name: str, data_dir: str | None, image_size: int | None, may_replace: bool
) -> ImageSource:
    try:
        return open_tfds(name, data_dir, image_size)
    except UnavailableError as error:
        if not may_replace:
            advice = f"Name the directory that contains {name.split('/')[0]}/, allow the download"
            raise DataError(f"{error}. {advice}, or use 'digits'.") from error
        digits = _registered("digits")
        return dataclasses.replace(digits, description=f"{digits.description} ({error})")


def _assemble(source: ImageSource, config: DataConfig) -> Dataset:
    """Choose the three parts, change the train part as asked for and measure it."""
    rows = _rows(config, source.name, source.sizes["train"], source.sizes["test"])
    num_classes = len(source.class_names)
    labels = _read_parts(source.labels, rows)
    if config.imbalance != "none":
        kept = imbalanced_rows(
            labels["train"],
            num_classes,
            profile=config.imbalance,
            factor=config.imbalance_factor,
            seed=config.noise_seed,
        )
        rows["train"], labels["train"] = rows["train"][kept], labels["train"][kept]
    labels["train"] = _noisy(labels["train"], source, config)
    stream = config.stream
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


def _noisy(labels: np.ndarray, source: ImageSource, config: DataConfig) -> np.ndarray:
    rate, seed = config.noise_rate, config.noise_seed
    if config.label_noise == "symmetric":
        return symmetric_noise(labels, len(source.class_names), rate=rate, seed=seed)
    if config.label_noise == "asymmetric":
        targets = asymmetric_targets(source.class_names, source.superclasses())
        return asymmetric_noise(labels, targets, rate=rate, seed=seed)
    return labels
