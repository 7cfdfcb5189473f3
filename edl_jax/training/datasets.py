"""Image data sets as NumPy arrays: CIFAR-10 through TFDS, without TensorFlow, and digits."""

import dataclasses
import functools
import importlib
import io
import os
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.errors import ConfigError, DataError

DATASETS = ("auto", "cifar10", "digits")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_DIGITS_TEST = 360
_DAMAGED = "The files are damaged or incomplete: delete the folder and prepare it again."
# (split, start, stop) -> images uint8 [n, h, w, c] and labels int32 [n]
_Reader = Callable[[str, int, int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three parts that do not overlap; the arrays are read-only.

    Attributes:
      name: "cifar10" or "digits".
      train_images: `[n, h, w, c]`, uint8; likewise `val_images` and `test_images`.
      train_labels: `[n]`, int32, in `[0, num_classes)`; likewise `val_labels` and `test_labels`.
      num_classes: number of classes.
      crop_padding: padding of the usual random crop, in pixels.
      flip: whether mirrored images keep their meaning.
      source: a sentence that says where the images come from and why.
      mean: mean of each channel of the train images in units of 0..1, `[c]`, float32.
      std: standard deviation likewise.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    crop_padding: int
    flip: bool
    source: str
    mean: np.ndarray
    std: np.ndarray


class _UnavailableError(Exception):
    """CIFAR-10 cannot be had here; the message is the reason."""


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_examples: int | None = None,
    val_examples: int = 0,
    test_examples: int | None = None,
) -> Dataset:
    """Loads a data set, once per process for the same arguments.

    Args:
      name: "cifar10"; "digits" (scikit-learn's 1,797 grey images of 8x8); or "auto", CIFAR-10
        where it is prepared or can be downloaded, and digits where it is not.
      data_dir: TFDS directory, the one that contains `cifar10/`. Default: the environment's
        `TFDS_DATA_DIR`, or else TFDS's own. With "auto", naming a directory rules digits out.
      train_examples: the first so many of the (shuffled) train split; None is all that
        validation leaves.
      val_examples: the last so many of the train split.
      test_examples: the first so many of the test split; None is all.

    Returns:
      The data set.

    Raises:
      ConfigError: the name is unknown, or more examples are asked for than there are.
      DataError: CIFAR-10 is neither prepared nor to be downloaded, the files are damaged, or
        an optional dependency is missing.

    References:
      Krizhevsky, "Learning multiple layers of features from tiny images", 2009;
      Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
    """
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")
    directory = os.environ.get("TFDS_DATA_DIR") if data_dir is None else os.fspath(data_dir)
    counts = (train_examples, val_examples, test_examples)
    return _load(name, directory or None, counts, may_replace=name == "auto" and data_dir is None)


@functools.cache
def _load(name: str, data_dir: str | None, counts: tuple[Any, ...], may_replace: bool) -> Dataset:
    if name == "digits":
        return _digits("scikit-learn's handwritten digits", counts)
    try:
        sources, folder, source = _open_cifar10(data_dir)
    except _UnavailableError as error:
        if may_replace:
            return _digits(f"scikit-learn's handwritten digits ({error})", counts)
        advice = "Name the directory that contains cifar10/, allow the download, or use 'digits'."
        raise DataError(f"{error}. {advice}") from error
    reader = functools.partial(_read_cifar10, sources, folder)
    sizes = len(sources["train"]), len(sources["test"])
    return _assemble("cifar10", reader, sizes, counts, crop_padding=4, flip=True, source=source)


def _assemble(
    name: str, reader: _Reader, sizes: tuple[int, int], counts: tuple[Any, ...], **facts: Any
) -> Dataset:
    """Reads the three parts, checks the labels and measures the train images."""
    (num_train, num_test), (train, val, test) = sizes, counts
    train = num_train - val if train is None else train
    test = num_test if test is None else test
    if min(train, test, val + 1) < 1 or train + val > num_train or test > num_test:
        asked = f"{train} train, {val} validation and {test} test examples asked for"
        has = f"{num_train} to share between train and validation, and {num_test} for test"
        raise ConfigError(f"{asked}: {name} has {has}")
    parts = {
        "train": reader("train", 0, train),
        "val": reader("train", num_train - val, num_train),
        "test": reader("test", 0, test),
    }
    arrays: dict[str, Any] = {}
    for part, (images, labels) in parts.items():
        if np.any((labels < 0) | (labels > 9)):
            raise DataError(f"{part} labels out of range 0..9 in {facts['source']}. {_DAMAGED}")
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    # Frequencies of the 256 levels: exact, and without a float copy of the images.
    channels = arrays["train_images"].reshape(-1, parts["train"][0].shape[-1]).T
    frequencies = np.stack([np.bincount(c, minlength=256) / len(c) for c in channels])
    levels = np.arange(256) / 255
    mean = frequencies @ levels
    std = np.sqrt(np.sum(frequencies * (levels - mean[:, None]) ** 2, axis=1))
    arrays |= {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
    for array in arrays.values():
        array.flags.writeable = False
    return Dataset(name=name, num_classes=10, **arrays, **facts)


def _digits(source: str, counts: tuple[Any, ...]) -> Dataset:
    try:
        loaded = _require("sklearn.datasets").load_digits()
    except _UnavailableError as error:
        raise DataError(str(error)) from error
    order = np.random.default_rng(0).permutation(len(loaded.target))
    images = np.round(loaded.images * (255 / 16)).astype(np.uint8)[order, :, :, None]
    labels = loaded.target.astype(np.int32)[order]
    offsets = {"train": 0, "test": len(labels) - _DIGITS_TEST}

    def read(split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = slice(start + offsets[split], stop + offsets[split])
        return images[chosen].copy(), labels[chosen].copy()

    sizes = offsets["test"], _DIGITS_TEST
    return _assemble("digits", read, sizes, counts, crop_padding=1, flip=False, source=source)


def _open_cifar10(data_dir: str | None) -> tuple[dict[str, Any], Path, str]:
    """Finds CIFAR-10 as a TFDS data source for each split, downloading it if it is not there."""
    tfds = _require("tensorflow_datasets")
    for module in ("array_record", "PIL.Image"):
        _require(module)
    where = data_dir or "the default TFDS directory"
    try:
        builder = tfds.builder("cifar10", data_dir=data_dir)
        where = builder.data_path.parent.parent
        source = f"CIFAR-10 prepared in {where}"
        # TFDS writes this file last, into a folder that it renames when everything is there.
        if not (builder.data_path / "dataset_info.json").exists():
            _download_cifar10(where)
            builder = tfds.builder("cifar10", data_dir=where)
            source = f"CIFAR-10 downloaded to and prepared in {where}"
        # The stored bytes: TFDS would decode with OpenCV on one machine and Pillow on another.
        sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
        return {split: sources[split] for split in ("train", "test")}, builder.data_path, source
    except _UnavailableError:
        raise
    except NotImplementedError as error:
        raise _UnavailableError(f"CIFAR-10 in {where} is not in ArrayRecord format") from error
    except Exception as error:  # the parsers under TFDS raise exceptions of their own
        raise DataError(f"cannot open CIFAR-10 in {where}: {error}. {_DAMAGED}") from error


def _read_cifar10(
    sources: dict[str, Any], folder: Path, split: str, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the examples from start to stop of a split, and no others."""
    pillow = _require("PIL.Image")
    images = np.empty((stop - start, 32, 32, 3), np.uint8)
    labels = np.empty(stop - start, np.int32)
    try:
        for low in range(start, stop, 1000):
            examples = sources[split].__getitems__(range(low, min(low + 1000, stop)))
            for row, example in enumerate(examples, low - start):
                with pillow.open(io.BytesIO(example["image"])) as image:
                    images[row] = np.asarray(image.convert("RGB")).reshape(32, 32, 3)
                labels[row] = example["label"]
    except Exception as error:  # ArrayRecord raises RuntimeError, Pillow OSError, protobuf its own
        where = f"the {split} split of CIFAR-10 in {folder}"
        raise DataError(f"cannot read {where}: {error}. {_DAMAGED}") from error
    return images, labels


def _download_cifar10(root: Path) -> None:
    """Downloads the official archive and prepares it under root, in the ArrayRecord format.

    TFDS's own builder unpacks the archive and encodes the images with TensorFlow. Here the builder
    is told to do both without; checksum, shuffling, writing and renaming at the end are TFDS's.
    """
    pillow = _require("PIL.Image")
    try:
        _require("importlib_resources")  # TFDS's builders need it and TFDS does not install it
        cifar = _require("tensorflow_datasets.image_classification.cifar")
        # The downloader itself waits much longer where there is no network.
        urllib.request.urlopen(
            urllib.request.Request(CIFAR10_URL, method="HEAD"), timeout=3
        ).close()
        builder = cifar.Cifar10(data_dir=root, file_format="array_record")

        def examples(split: str, records: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
            # One byte of label, then 32x32 pixels of red, of green and of blue.
            for index, record in enumerate(np.frombuffer(records, np.uint8).reshape(-1, 3073)):
                image = pillow.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
                name = f"{split}_{index:05d}"
                yield index, {"id": name, "image": image, "label": int(record[0])}

        def split_generators(downloads: Any) -> dict[str, Any]:
            with tarfile.open(downloads.download(CIFAR10_URL)) as tar:
                files = {Path(member.name).name: tar.extractfile(member) for member in tar}
                contents = {name: file.read() for name, file in files.items() if file}
            builder.info.features["label"].names = contents["batches.meta.txt"].decode().split()
            train = b"".join(contents[f"data_batch_{index}.bin"] for index in range(1, 6))
            test = contents["test_batch.bin"]
            return {"train": examples("train", train), "test": examples("test", test)}

        builder._split_generators = split_generators
        builder.download_and_prepare()
    except Exception as error:  # network, disk, checksum, archive: each has exceptions of its own
        reason = f"CIFAR-10 is not prepared in {root} and could not be downloaded: {error}"
        raise _UnavailableError(reason) from error


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _UnavailableError(f'{error}: pip install "edl_jax[data]"') from error
