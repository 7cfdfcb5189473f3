"""Data sets prepared by TFDS on first use, in the ArrayRecord format; CIFAR without TensorFlow."""

import contextlib
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.optional import UnavailableError, require

CIFAR_URLS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
}


def prepare(builder: Any, title: str, root: Path) -> None:
    """Download a data set and prepare it in a TFDS directory, with the data set's own builder.

    Checksums, shuffling, writing and renaming at the end are TFDS's: a half-finished folder is
    never taken for a prepared one.
    """
    missing = f"{title} is not prepared in {root}"
    require("importlib_resources")  # TFDS's builders need it and TFDS does not install it
    try:
        url = CIFAR_URLS.get(builder.name) or next(iter(builder.url_infos or ()), None)
        if url is not None:
            _check_network(url)
        if builder.name in CIFAR_URLS:
            _read_cifar_without_tensorflow(builder)
        config = require("tensorflow_datasets").download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:  # network, disk, checksum, archive: each has exceptions of its own
        if _misses_tensorflow(error):
            code = (
                f"import tensorflow_datasets as tfds; tfds.builder({title!r}, data_dir="
                f"{str(root)!r}).download_and_prepare(file_format='array_record')"
            )
            raise UnavailableError(
                f"{missing}, and its own TFDS builder needs TensorFlow to prepare it. Do that "
                f"once, in any environment with tensorflow and tensorflow-datasets, after which "
                f'TensorFlow is not needed: python -c "{code}"'
            ) from error
        raise UnavailableError(f"{missing} and could not be downloaded: {error}") from error


def _check_network(url: str) -> None:
    """Fails within seconds where there is no network; TFDS's downloader tries for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError):  # a server that refuses such requests is one
        urllib.request.urlopen(request, timeout=3).close()


def _misses_tensorflow(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ImportError) and "tensorflow" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _read_cifar_without_tensorflow(builder: Any) -> None:
    """Replaces a CIFAR builder's reading of the archive, which uses TensorFlow."""
    pillow, facts = require("PIL.Image"), builder._cifar_info
    width = len(facts.label_keys)

    def examples(split: str, records: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        # A byte for each label, then 32x32 pixels of red, of green and of blue.
        for index, record in enumerate(np.frombuffer(records, np.uint8).reshape(-1, width + 3072)):
            pixels = record[width:].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = zip(facts.label_keys, map(int, record), strict=False)
            name = f"{split}_{index:05d}"
            yield index, {"id": name, "image": pillow.fromarray(pixels), **dict(labels)}

    def split_generators(downloads: Any) -> dict[str, Any]:
        with tarfile.open(downloads.download(CIFAR_URLS[builder.name])) as tar:
            files = {Path(member.name).name: tar.extractfile(member) for member in tar}
            contents = {name: file.read() for name, file in files.items() if file}
        for key, file in zip(facts.label_keys, facts.label_files, strict=True):
            builder.info.features[key].names = contents[file].decode().split()
        return {
            split: examples(split, b"".join(contents[file] for file in files))
            for split, files in [("train", facts.train_files), ("test", facts.test_files)]
        }

    builder._split_generators = split_generators
