"""Image classification sets of TFDS, read from a prepared directory without TensorFlow."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.download import prepare
from edl_jax.data.images import decode_image
from edl_jax.data.optional import UnavailableError, require
from edl_jax.data.sources import DATASETS, ImageSource, LazyArray, content_digest
from edl_jax.errors import ConfigError, DataError, EDLError
from edl_jax.runs.storage import user_cache

# Data sets of characters, which mean something else or nothing when mirrored. TFDS does not say.
_NOT_MIRRORED = {
    *("mnist", "mnist_corrupted", "emnist", "kmnist", "svhn_cropped"),
    *("binary_alpha_digits", "cmaterdb", "omniglot"),
}
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def open_tfds(name: str, data_dir: str | None, image_size: int | None) -> ImageSource:
    """Find a data set in a TFDS directory (None: TFDS's own), or prepare it there.

    What is prepared is taken as it is, whatever its version and without the code that made it.
    """
    tfds = require("tensorflow_datasets")
    for module in ("array_record", "PIL.Image"):
        require(module)
    where: Any = data_dir or "the default TFDS directory"
    title = _TITLES.get(name, name)
    try:
        builder, verb = _prepared_builder(tfds, name, data_dir), "prepared in"
        if builder is None:
            builder, verb = (
                _builder_from_code(tfds, name, data_dir),
                "downloaded to and prepared in",
            )
            where = _root(builder)
            _features(tfds, builder.info, image_size)  # refuse before downloading
            prepare(builder, title, where)
            builder = tfds.builder_from_directory(builder.data_path)
        where = _root(builder)
        if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
            raise UnavailableError(f"{title} in {where} is not in ArrayRecord format")
        return _source(tfds, builder, f"{title} {verb} {where}", image_size)
    except EDLError:
        raise
    except Exception as error:  # the parsers under TFDS raise exceptions of their own
        raise DataError(f"cannot open {title} in {where}: {error}. {advice(error)}") from error


def prepared_files(name: str, data_dir: str | None) -> tuple[tuple[str, int], ...]:
    """Path and time of the file that TFDS writes last, of each version that is prepared."""
    root = Path(os.path.expanduser(data_dir or "~/tensorflow_datasets"))
    root /= name.split("/")[0].split(":")[0]
    found = [*root.glob("*/dataset_info.json"), *root.glob("*/*/dataset_info.json")]
    return tuple((str(path), path.stat().st_mtime_ns) for path in sorted(found))


def advice(error: Exception) -> str:
    """What to do about data that cannot be read: what the machine refuses now may be sound."""
    number = error.errno if isinstance(error, OSError) else None  # Pillow's OSErrors have none
    if isinstance(error, MemoryError) or number not in (None, errno.ENOENT):
        return "The files were left as they are: give the same command again when they can be read."
    return "The files are damaged or incomplete: delete the folder and prepare it again."


def _prepared_builder(tfds: Any, name: str, data_dir: str | None) -> Any:
    """A builder of the files in `data_dir`, or None if they are not all there."""
    files = require("tensorflow_datasets.core.read_only_builder")
    try:
        return files.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except OSError as error:
        # dataset_info.json is what TFDS writes last: without it, the folder is half a copy.
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _builder_from_code(tfds: Any, name: str, data_dir: str | None) -> Any:
    expected = f"NAME, NAME/CONFIG or NAME/CONFIG:VERSION of TFDS, {', '.join(DATASETS)}, auto"
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ConfigError(f"unknown data set {name!r}; expected {expected}") from error
    except (ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"data set {name!r}: {error}; expected {expected}") from error


def _source(tfds: Any, builder: Any, description: str, image_size: int | None) -> ImageSource:
    info, folder = builder.info, Path(builder.data_path)
    name = _name(info)
    image_key, label_key, shape = _features(tfds, info, image_size)
    if "train" not in info.splits or not {"test", "validation"} & {*info.splits}:
        found = ", ".join(info.splits)
        raise ConfigError(f"{name} has the splits {found}; expected train, and test or validation")
    parse = require("tensorflow_datasets.proto").tf_example_pb2.Example.FromString
    caches = user_cache()

    def image(feature: Any) -> np.ndarray:
        return decode_image(feature.bytes_list.value[0], shape[2], image_size).reshape(shape)

    def label(feature: Any) -> int:
        return feature.int64_list.value[0]

    def read_split(split: str) -> tuple[LazyArray, LazyArray]:
        """Images and labels."""

        @contextlib.contextmanager
        def reading() -> Iterator[None]:
            try:
                yield
            except Exception as error:  # ArrayRecord raises RuntimeError, Pillow OSError
                where = f"the {split} split of {_TITLES.get(name, name)} in {folder}"
                raise DataError(f"cannot read {where}: {error}. {advice(error)}") from error

        with reading():
            records = builder.as_data_source(
                split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format="array_record",
            )
            stats = [(path.name, path.stat()) for path in map(Path, info.splits[split].filepaths)]
        files = [(path, stat.st_size) for path, stat in stats]
        times = [stat.st_mtime_ns for _, stat in stats]

        def column(key: str, row_shape: Any, dtype: Any, decode: Callable[[Any], Any]) -> LazyArray:
            def read(rows: np.ndarray) -> np.ndarray:
                found = np.empty((len(rows), *row_shape), dtype)
                with reading():
                    for index, record in enumerate(records.__getitems__(rows.tolist())):
                        found[index] = decode(parse(record).features.feature[key])
                return found

            digest = content_digest([name, folder.name, split, key, files, row_shape, image_size])
            of_file = [digest, str(folder.resolve()), times, require("PIL").__version__]
            place = (
                f"{info.full_name.replace('/', '-')}/{split}-{key}-{content_digest(of_file)}.npy"
            )
            cache = None if caches is None else caches / place
            return LazyArray(
                np.arange(len(records)), row_shape, np.dtype(dtype), read, digest, cache
            )

        return column(image_key, shape, np.uint8, image), column(label_key, (), np.int32, label)

    test = "test" if "test" in info.splits else "validation"
    arrays = {"train": read_split("train"), "test": read_split(test)}
    if "validation" in info.splits and arrays["test"][1][0] < 0:  # secret: -1 throughout
        arrays["test"] = read_split("validation")
    return ImageSource(
        name,
        description,
        tuple(info.features[label_key].names),
        arrays,
        flip=name.split("/")[0] not in _NOT_MIRRORED,
    )


def _features(
    tfds: Any, info: Any, image_size: int | None
) -> tuple[str, str, tuple[int, int, int]]:
    """The names of the image and of the label, and the shape of the images."""
    name, features, keys = _name(info), dict(info.features.items()), []
    for kind, usual in ((tfds.features.Image, "image"), (tfds.features.ClassLabel, "label")):
        found = [key for key, feature in features.items() if type(feature) is kind]
        if usual not in found and len(found) != 1:
            has = ", ".join(
                f"{key} ({type(feature).__name__})" for key, feature in features.items()
            )
            raise ConfigError(
                f"{name} is no set of labelled images: its features are {has}; expected one of the "
                f"type {kind.__name__}, or one of them named {usual}"
            )
        keys.append(usual if usual in found else found[0])
    image = features[keys[0]]
    height, width, channels = (
        image.shape if image_size is None else (image_size, image_size, image.shape[2])
    )
    if np.dtype(image.np_dtype) != np.uint8 or channels not in (1, 3, None):
        raise ConfigError(
            f"{name} has {np.dtype(image.np_dtype)} images of shape {image.shape}; expected uint8 "
            "and 1 or 3 channels"
        )
    if height is None or width is None:
        raise ConfigError(
            f"{name} has images of no fixed size: give image_size, the side in pixels to which "
            "they are resized and cropped, such as 224"
        )
    return keys[0], keys[1], (height, width, channels or 3)


def _name(info: Any) -> str:
    return info.full_name.removesuffix(f"/{info.version}")


def _root(builder: Any) -> Path:
    """The TFDS directory that a builder's folder, NAME[/CONFIG]/VERSION, is in."""
    return Path(builder.data_path).parents[builder.info.full_name.count("/")]
