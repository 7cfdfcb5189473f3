"""Image classification sets of TFDS, read from a prepared directory without TensorFlow."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.download import prepare
from edl_jax.data.images import UnavailableError, decode_image, require
from edl_jax.data.sources import DATASETS, ImageSource, LazyArray, content_digest
from edl_jax.errors import ConfigError, DataError, EDLError
from edl_jax.runs.storage import user_cache

# Data sets of characters, which mean something else or nothing when mirrored. TFDS does not say.
_NOT_MIRRORED = {
    *("mnist", "mnist_corrupted", "emnist", "kmnist", "svhn_cropped"),
    *("binary_alpha_digits", "cmaterdb", "omniglot"),
}


def open_tfds(name: str, data_dir: str | None, image_size: int | None) -> ImageSource:
    """Find a data set in a TFDS directory (None: TFDS's own), or prepare it there.

    What is prepared is taken as it is, whatever its version and without the code that made it.
    """
    tfds = require("tensorflow_datasets")
    for module in ("array_record", "PIL.Image"):
        require(module)
    where = data_dir or "the default TFDS directory"
    try:
        builder = _prepared_builder(tfds, name, data_dir)
        if builder is None:
            builder = _builder_from_code(tfds, name, data_dir)
            _features(tfds, builder.info, image_size)  # refuse before downloading
            prepare(builder, name)
            builder = tfds.builder_from_directory(builder.data_path)
        if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
            raise UnavailableError(f"{name} in {where} is not in ArrayRecord format.")
        return _source(tfds, builder, image_size)
    except EDLError:
        raise
    except Exception as error:  # the parsers under TFDS raise exceptions of their own
        raise DataError(f"cannot open {name} in {where}: {error}. {advice(error)}") from error


def prepared_files(name: str, data_dir: str | None) -> tuple[tuple[str, int], ...]:
    """Path and time of the file that TFDS writes last, of each version that is prepared."""
    root = Path(os.path.expanduser(data_dir or "~/tensorflow_datasets"))
    found = (root / name.split("/")[0].split(":")[0]).glob("**/dataset_info.json")
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
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, TypeError) as error:  # by name, configuration or option
        told = str(error).splitlines()[0]  # else the names of all data sets
        raise ConfigError(
            f"there is no data set {name!r}: {told} Expected NAME, NAME/CONFIG or "
            f"NAME/CONFIG:VERSION of TFDS, {', '.join(DATASETS)}, folder:PATH or auto."
        ) from error


def _source(tfds: Any, builder: Any, image_size: int | None) -> ImageSource:
    info, folder = builder.info, Path(builder.data_path)
    name = info.full_name.rpartition("/")[0]
    image_key, label_key, shape = _features(tfds, info, image_size)
    if "train" not in info.splits or not {"test", "validation"} & {*info.splits}:
        found = ", ".join(info.splits)
        raise ConfigError(f"{name} has the splits {found}; expected train, and test or validation")
    parse = require("tensorflow_datasets.proto").tf_example_pb2.Example.FromString
    raw, caches = tfds.decode.DeserializeMethod.RAW_BYTES, user_cache()

    @contextlib.contextmanager
    def reading(split: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ArrayRecord raises RuntimeError, Pillow OSError, others too
            where = f"the {split} split of {name} in {folder}"
            raise DataError(f"cannot read {where}: {error}. {advice(error)}") from error

    def column(split: str, key: str, row_shape: Any, dtype: Any, decode: Callable) -> LazyArray:
        with reading(split):
            records = builder.as_data_source(
                split, deserialize_method=raw, file_format="array_record"
            )
            stats = [(path.name, path.stat()) for path in map(Path, info.splits[split].filepaths)]

        def read(rows: np.ndarray) -> np.ndarray:
            values = np.empty((len(rows), *row_shape), dtype)
            with reading(split):
                for index, record in enumerate(records.__getitems__(rows.tolist())):
                    values[index] = decode(parse(record).features.feature[key])
            return values

        files = [(file, stat.st_size) for file, stat in stats]
        digest = content_digest([name, folder.name, split, key, files, row_shape, image_size])
        of_cache = [digest, str(folder.resolve()), require("PIL").__version__]
        of_cache += [stat.st_mtime_ns for _, stat in stats]
        place = f"{info.full_name.replace('/', '-')}/{split}-{key}-{content_digest(of_cache)}.npy"
        path = None if caches is None else caches / place
        return LazyArray(np.arange(len(records)), row_shape, np.dtype(dtype), read, digest, path)

    def decode(feature: Any) -> np.ndarray:
        return decode_image(feature.bytes_list.value[0], shape[2], image_size).reshape(shape)

    def arrays(split: str) -> tuple[LazyArray, LazyArray]:
        images = column(split, image_key, shape, np.uint8, decode)
        return images, column(split, label_key, (), np.int32, lambda x: x.int64_list.value[0])

    train, test = arrays("train"), arrays("test" if "test" in info.splits else "validation")
    if "validation" in info.splits and test[1][0] < 0:  # secret: -1 throughout
        test = arrays("validation")
    class_names, flip = tuple(info.features[label_key].names), info.name not in _NOT_MIRRORED
    description = f"{name} prepared in {folder}"
    return ImageSource(name, description, class_names, {"train": train, "test": test}, flip)


def _features(
    tfds: Any, info: Any, image_size: int | None
) -> tuple[str, str, tuple[int, int, int]]:
    """The names of the image and of the label, and the shape of the images."""
    features = dict(info.features.items())
    images = [
        key
        for key, x in features.items()
        if type(x) is tfds.features.Image and x.np_dtype == np.uint8 and x.shape[2] in (1, 3, None)
    ]
    labels = [key for key, x in features.items() if type(x) is tfds.features.ClassLabel]
    keys = []
    for usual, found in (("image", images), ("label", labels)):
        if usual not in found and len(found) != 1:
            raise ConfigError(
                f"{info.name} is no set of labelled images: its features are {features}; expected "
                "an Image of uint8 and 1 or 3 channels, and a ClassLabel, and of several one named "
                "image and label."
            )
        keys.append(usual if usual in found else found[0])
    height, width, channels = features[keys[0]].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise ConfigError(
            f"{info.name} has images of no fixed size: give image_size, the side in pixels to "
            "which they are resized and cropped, such as 224."
        )
    return keys[0], keys[1], (height, width, channels or 3)
