"""Image classification sets of TFDS: prepared on first use and read, without TensorFlow."""

import contextlib
import errno
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.arrays import LazyArray, UnavailableError, content_digest, require
from edl_jax.data.sources import DATASETS, ArraySource, decode_image
from edl_jax.errors import ConfigError, DataError, EDLError
from edl_jax.runs.storage import user_cache

# Data sets of characters, which mean something else or nothing when mirrored. TFDS does not say.
_NOT_MIRRORED = {
    *("mnist", "mnist_corrupted", "emnist", "kmnist", "svhn_cropped"),
    *("binary_alpha_digits", "cmaterdb", "omniglot"),
}


def open_tfds(name: str, data_dir: str | None, image_size: int | None) -> ArraySource:
    """Find a data set in a TFDS directory (None: TFDS's own), or prepare it there.

    What is prepared is taken as it is, whatever its version and without the code that made it.
    """
    tfds = require("tensorflow_datasets")
    for module in ("array_record", "PIL.Image"):
        require(module)
    where = data_dir or "the default TFDS directory"
    try:
        builder = _builder(tfds, name, data_dir, image_size)
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


def _builder(tfds: Any, name: str, data_dir: str | None, image_size: int | None) -> Any:
    """A builder of the files in `data_dir`, which are prepared if they are not all there."""
    files = require("tensorflow_datasets.core.read_only_builder")
    try:
        return files.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    except OSError as error:
        # dataset_info.json is what TFDS writes last: without it, the folder is half a copy.
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, TypeError) as error:  # by name, configuration or option
        told = str(error).splitlines()[0]  # else the names of all data sets
        raise ConfigError(
            f"there is no data set {name!r}: {told} Expected NAME, NAME/CONFIG or "
            f"NAME/CONFIG:VERSION of TFDS, {', '.join(DATASETS)}, folder:PATH or auto."
        ) from error
    _features(tfds, builder.info, image_size)  # refuse before downloading
    _prepare(tfds, builder, name)
    return tfds.builder_from_directory(builder.data_path)


def _prepare(tfds: Any, builder: Any, name: str) -> None:
    """Download a data set and prepare it, with its own TFDS builder."""
    try:
        urls = [*(builder.url_infos or ())]
        if builder.name in ("cifar10", "cifar100"):
            urls = [builder._cifar_info.url]
            _read_cifar_without_tensorflow(builder)
        # Fails within seconds where there is no network; TFDS's downloader tries for minutes.
        for url in urls[:1]:
            with contextlib.suppress(urllib.error.HTTPError):  # a server that refuses is one
                request = urllib.request.Request(url, method="HEAD")
                urllib.request.urlopen(request, timeout=3).close()
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:  # network, disk, checksum, archive: each has exceptions of its own
        reason = (
            f"{name} is not prepared in {builder.data_dir_root} and could not be downloaded and "
            f"prepared: {error}."
        )
        if isinstance(error, ImportError):
            reason += (
                " Prepare it once where TensorFlow is, by "
                f"tfds.builder({name!r}, data_dir={str(builder.data_dir_root)!r})"
                ".download_and_prepare(file_format='array_record')."
            )
        raise UnavailableError(reason) from error


def _read_cifar_without_tensorflow(builder: Any) -> None:
    """Replaces a CIFAR builder's reading of the archive, which uses TensorFlow."""
    pillow, facts = require("PIL.Image"), builder._cifar_info
    width = len(facts.label_keys)

    def examples(split: str, records: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        # A byte for each label, then 32x32 pixels of red, of green and of blue.
        for index, record in enumerate(np.frombuffer(records, np.uint8).reshape(-1, width + 3072)):
            pixels = record[width:].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = dict(zip(facts.label_keys, map(int, record), strict=False))
            yield index, {"id": f"{split}_{index:05d}", "image": pillow.fromarray(pixels), **labels}

    def split_generators(downloads: Any) -> dict[str, Any]:
        with tarfile.open(downloads.download(facts.url)) as tar:
            files = {Path(member.name).name: tar.extractfile(member) for member in tar}
            contents = {name: file.read() for name, file in files.items() if file}
        for key, file in zip(facts.label_keys, facts.label_files, strict=True):
            builder.info.features[key].names = contents[file].decode().split()
        return {
            split: examples(split, b"".join(contents[file] for file in files))
            for split, files in [("train", facts.train_files), ("test", facts.test_files)]
        }

    builder._split_generators = split_generators


def _source(tfds: Any, builder: Any, image_size: int | None) -> ArraySource:
    """The train and the test split, whose arrays are read from the records when indexed."""
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
    return ArraySource(name, description, class_names, {"train": train, "test": test}, flip)


def _features(tfds: Any, info: Any, image_size: int | None) -> tuple[str, str, tuple[int, ...]]:
    """The names of the image and of the label, and the shape of the images."""
    kinds, features = tfds.features, dict(info.features.items())
    of_kind = {
        "image": [
            key
            for key, x in features.items()
            if type(x) is kinds.Image and x.np_dtype == np.uint8 and x.shape[2] in (1, 3, None)
        ],
        "label": [key for key, x in features.items() if type(x) is kinds.ClassLabel],
    }
    if not all(usual in keys or len(keys) == 1 for usual, keys in of_kind.items()):
        raise ConfigError(
            f"{info.name} is no set of labeled images: its features are {features}; expected an "
            "Image of uint8 and 1 or 3 channels, and a ClassLabel, and of several one named image "
            "and label."
        )
    image, label = (usual if usual in keys else keys[0] for usual, keys in of_kind.items())
    height, width, channels = features[image].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise ConfigError(
            f"{info.name} has images of no fixed size: give image_size, the side in pixels to "
            "which they are resized and cropped, such as 224."
        )
    return image, label, (height, width, channels or 3)
