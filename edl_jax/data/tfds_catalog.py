"""Data sets by name: found in a TFDS directory, or prepared there, and their features read."""

import difflib
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.download import prepare
from edl_jax.data.optional import UnavailableError, require
from edl_jax.data.sources import DATASETS
from edl_jax.data.tfds_source import TfdsSource, advice, title_of
from edl_jax.errors import ConfigError, DataError, EDLError
from edl_jax.runs.storage import user_cache


def open_tfds(name: str, data_dir: str | None, image_size: int | None) -> TfdsSource:
    """Finds a data set in a TFDS directory, preparing it if it is not there.

    What is prepared is taken as it is, whatever its version and without the code that made it.

    Args:
      name: "NAME", "NAME/CONFIG" or "NAME/CONFIG:VERSION", as TFDS writes them.
      data_dir: TFDS directory; None is TFDS's own.
      image_size: side of the square images; None is the size that the data set has.

    Raises:
      ConfigError: there is no such data set, it is none of labelled images, or it needs an
        `image_size`.
      UnavailableError: it cannot be prepared, or a dependency is missing.
      DataError: the files are damaged.
    """
    tfds = require("tensorflow_datasets")
    for module in ("array_record", "PIL.Image"):
        require(module)
    where, title = data_dir or "the default TFDS directory", title_of(name)
    try:
        builder, verb = _prepared_builder(tfds, name, data_dir), "prepared in"
        if builder is None:
            builder = _builder_from_code(tfds, name, data_dir)
            where = _root(builder)
            _keys_and_shape(tfds, builder.info, image_size)  # refuse before downloading
            prepare(builder, title, where)
            builder = tfds.builder_from_directory(builder.data_path)
            verb = "downloaded to and prepared in"
        where = _root(builder)
        return _source(tfds, builder, f"{title} {verb} {where}", image_size)
    except EDLError:
        raise
    except ImportError as error:
        raise UnavailableError(f'{error}: pip install "edl_jax[data]"') from error
    except NotImplementedError as error:
        raise UnavailableError(f"{title} in {where} is not in ArrayRecord format") from error
    except Exception as error:  # the parsers under TFDS raise exceptions of their own
        raise DataError(f"cannot open {title} in {where}: {error}. {advice(error)}") from error


def prepared_files(name: str, data_dir: str | None) -> tuple[tuple[str, int], ...]:
    """Path and time of the file that TFDS writes last, of each version that is prepared."""
    root = Path(os.path.expanduser(data_dir or "~/tensorflow_datasets"))
    root /= name.split("/")[0].split(":")[0]
    found = [*root.glob("*/dataset_info.json"), *root.glob("*/*/dataset_info.json")]
    return tuple((str(path), path.stat().st_mtime_ns) for path in sorted(found))


def _prepared_builder(tfds: Any, name: str, data_dir: str | None) -> Any:
    """A builder of the files in `data_dir`, or None if they are not all there."""
    try:
        require("tensorflow_datasets.core.naming").parse_builder_name_kwargs(name)
    except ValueError as error:
        raise ConfigError(f"data set {name!r} is no name; expected one such as mnist") from error
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
    except tfds.core.DatasetNotFoundError as error:
        prepared = [] if data_dir is None else [p.name for p in Path(data_dir).glob("*")]
        known = ["auto", *DATASETS, *tfds.list_builders(with_community_datasets=False), *prepared]
        close = difflib.get_close_matches(name.split("/")[0].split(":")[0], [*dict.fromkeys(known)])
        names = f"a name that TFDS has, {', '.join(DATASETS)} or auto"
        advice = f"did you mean {' or '.join(close)}?" if close else f"expected {names}"
        raise ConfigError(f"unknown data set {name!r}: {advice}") from error
    except (ValueError, AssertionError) as error:  # no such configuration or version
        configs = tfds.builder_cls(name.split("/")[0].split(":")[0]).builder_configs
        raise ConfigError(
            f"data set {name!r} has no such configuration or version; its configurations are "
            f"{', '.join(configs) or 'none'}"
        ) from error


def _source(tfds: Any, builder: Any, description: str, image_size: int | None) -> TfdsSource:
    """Reads from the builder what there is of features and splits."""
    info, root = builder.info, _root(builder)
    if "array_record" not in {form.value for form in info.available_file_formats()}:
        raise NotImplementedError
    name = _name(info)
    keys, shape = _keys_and_shape(tfds, info, image_size)
    splits = {"train": "train", "test": "test" if "test" in info.splits else "validation"}
    if not {*splits.values()} <= {*info.splits}:
        found = ", ".join(info.splits)
        raise ConfigError(f"{name} has the splits {found}; expected train, and test or validation")
    store = info.full_name.replace("/", "-") + (f"-{image_size}" if image_size else "")
    # Data sets of one name in two folders need not be the same.
    place = f"{store}-{zlib.crc32(str(root.resolve()).encode()):08x}"
    caches = user_cache()
    raw = tfds.decode.DeserializeMethod.RAW_BYTES

    def make(splits: dict[str, str]) -> TfdsSource:
        return TfdsSource(
            name=name,
            description=description,
            class_names=tuple(info.features[keys[1]].names),
            image_shape=shape,
            resize=image_size is not None,
            splits=splits,
            keys=keys,
            records={
                split: builder.as_data_source(
                    own, deserialize_method=raw, file_format="array_record"
                )
                for split, own in splits.items()
            },
            shards={
                split: tuple(map(Path, info.splits[own].filepaths)) for split, own in splits.items()
            },
            folder=Path(builder.data_path),
            cache=None if caches is None else caches / place,
        )

    source = make(splits)
    has_both = {"test", "validation"} <= {*info.splits}
    if has_both and source.labels_are_secret("test"):
        source = make(splits | {"test": "validation"})
    return source


def _name(info: Any) -> str:
    return info.full_name.removesuffix(f"/{info.version}")


def _keys_and_shape(
    tfds: Any, info: Any, image_size: int | None
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """The features that `TfdsSource.keys` names, and the shape of the images."""
    name, features = _name(info), dict(info.features.items())
    image = _feature(name, features, tfds.features.Image, "image")
    label = _feature(name, features, tfds.features.ClassLabel, "label")
    shape = _image_shape(name, features[image], image_size)
    if isinstance(features.get("coarse_label"), tfds.features.ClassLabel):
        return (image, label, "coarse_label"), shape
    return (image, label), shape


def _feature(name: str, features: Any, kind: type, preferred: str) -> str:
    """The name of the one feature of a kind, or of the one with the preferred name."""
    found = [key for key, feature in features.items() if type(feature) is kind]
    if preferred in found:
        return preferred
    if len(found) != 1:
        has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise ConfigError(
            f"{name} is no set of labelled images: its features are {has}; expected one of the "
            f"type {kind.__name__}, or one of them named {preferred}"
        )
    return found[0]


def _image_shape(name: str, feature: Any, image_size: int | None) -> tuple[int, int, int]:
    height, width, channels = feature.shape
    if np.dtype(feature.np_dtype) != np.uint8 or channels not in (1, 3, None):
        raise ConfigError(
            f"{name} has {np.dtype(feature.np_dtype)} images of shape {feature.shape}; expected "
            "uint8 and 1 or 3 channels"
        )
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise ConfigError(
            f"{name} has images of no fixed size: give image_size, the side in pixels to which "
            "they are resized and cropped, such as 224"
        )
    return height, width, channels or 3


def _root(builder: Any) -> Path:
    """The TFDS directory that a builder's folder, NAME[/CONFIG]/VERSION, is in."""
    return Path(builder.data_path).parents[builder.info.full_name.count("/")]
