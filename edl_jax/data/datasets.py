"""Data sets by name, divided into three parts."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from edl_jax.data.corruption import (
    Corruption,
    asymmetric_noise,
    asymmetric_targets,
    imbalanced_rows,
    symmetric_noise,
)
from edl_jax.data.dataset import Dataset, channel_statistics
from edl_jax.data.optional import UnavailableError
from edl_jax.data.sources import DATASETS, ArraySource, ImageSource
from edl_jax.data.streaming import StreamedImages, fits_device
from edl_jax.data.tfds_catalog import open_tfds, prepared_files
from edl_jax.errors import ConfigError, DataError
from edl_jax.runs.storage import user_path
from edl_jax.validation import MAX_SEED, check_types, check_whole


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
    """Loads a data set.

    The last two that were loaded are kept: the same arguments and the same data give the same
    object again. A data set that is not prepared is downloaded and prepared by TFDS. Decoded images
    are kept in the user's cache folder, `$XDG_CACHE_HOME/edl_jax` or `~/.cache/edl_jax`. The train
    part is chosen (validation held out, then the first of the rest), then made imbalanced, then
    given wrong labels; validation and test stay as they are.

    Args:
      name: an image classification set of TFDS, such as "cifar10", "cifar100", "mnist" or
        "imagenette/320px"; a name in `DATASETS`: "digits" (scikit-learn's 1,797 grey images of
        8x8) or your own; or "auto", CIFAR-10 where it is prepared or can be downloaded, and digits
        where it is not. The test split is TFDS's "test", or "validation" where there is none with
        labels.
      data_dir: TFDS directory, the one that contains `cifar10/`; `~` is the home folder. Default:
        the environment's `TFDS_DATA_DIR`, or else TFDS's own. With "auto", naming a directory rules
        digits out.
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
    given = os.environ.get("TFDS_DATA_DIR") or None if data_dir is None else data_dir
    directory = None if given is None else str(user_path(given))
    parts = Parts(train_examples, val_examples, test_examples, split_seed, image_size)
    corruption = Corruption(label_noise, noise_rate, imbalance, imbalance_factor, corruption_seed)
    if name in DATASETS:
        source = _registered(name)
        origin = _Origin((source.name, source.description, source.digest), lambda: source)
    else:
        may_replace = name == "auto" and data_dir is None
        found = "cifar10" if name == "auto" else name
        origin = _Origin(
            (name, directory, may_replace, prepared_files(found, directory)),
            lambda: _prepared(found, directory, image_size, may_replace),
        )
    return _load(origin, parts, corruption, stream)


@dataclasses.dataclass(frozen=True)
class _Origin:
    """A source that is equal to another if their keys are, whoever opens it."""

    key: tuple[Any, ...]
    open: Callable[[], ImageSource] = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=2)  # each has arrays of its own
def _load(origin: _Origin, parts: Parts, corruption: Corruption, stream: bool | None) -> Dataset:
    source = origin.open()
    if isinstance(source, ArraySource) and parts.image_size is not None:
        source = source.resized(parts.image_size)
    return _assemble(source, parts, corruption, stream)


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


def _noisy(labels: np.ndarray, source: ImageSource, corruption: Corruption) -> np.ndarray:
    rate, seed = corruption.noise_rate, corruption.seed
    if corruption.label_noise == "symmetric":
        return symmetric_noise(labels, len(source.class_names), rate=rate, seed=seed)
    if corruption.label_noise == "asymmetric":
        targets = asymmetric_targets(source.class_names, source.superclasses())
        return asymmetric_noise(labels, targets, rate=rate, seed=seed)
    return labels
