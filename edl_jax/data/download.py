"""Data sets prepared by TFDS on first use, in the ArrayRecord format; CIFAR without TensorFlow."""

import contextlib
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.images import UnavailableError, require

CIFAR_URLS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
}


def prepare(builder: Any, name: str) -> None:
    """Download a data set and prepare it, with its own TFDS builder.

    Checksums, shuffling, writing and renaming at the end are TFDS's: a half-finished folder is
    never taken for a prepared one.
    """
    try:
        url = CIFAR_URLS.get(builder.name) or next(iter(builder.url_infos or ()), None)
        if url is not None:
            # Fails within seconds where there is no network; TFDS's downloader tries for minutes.
            with contextlib.suppress(urllib.error.HTTPError):  # a server that refuses is one
                request = urllib.request.Request(url, method="HEAD")
                urllib.request.urlopen(request, timeout=3).close()
        if builder.name in CIFAR_URLS:
            _read_cifar_without_tensorflow(builder)
        config = require("tensorflow_datasets").download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:  # network, disk, checksum, archive: each has exceptions of its own
        advice = ""
        if isinstance(error, ImportError):
            advice = (
                " Prepare it once where TensorFlow is, by "
                f"tfds.builder({name!r}, data_dir={str(builder.data_dir_root)!r})"
                ".download_and_prepare(file_format='array_record')."
            )
        raise UnavailableError(
            f"{name} is not prepared in {builder.data_dir_root} and could not be downloaded and "
            f"prepared: {error}.{advice}"
        ) from error


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
