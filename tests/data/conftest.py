"""Miniature data sets, prepared by TFDS without TensorFlow, and a world without network."""

import contextlib
import functools
import http.server
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edl_jax.data import datasets

NO_SERVER = "http://127.0.0.1:9/archive.tar.gz"  # the discard port: refused at once
CIFAR10_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FINE_NAMES = tuple(f"fine{label}" for label in range(100))
COARSE_NAMES = tuple(f"coarse{label}" for label in range(20))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test sees this machine's network, environment, TFDS directory or cache, nor another's."""
    for name in ("cifar10", "cifar100"):
        name_archive(monkeypatch, name, NO_SERVER)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home cache"))
    datasets._load.cache_clear()


def name_archive(patch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Lets TFDS download a CIFAR archive from another address."""
    with contextlib.suppress(ImportError):
        from tensorflow_datasets.image_classification import cifar

        kind = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]
        of_builder = kind._cifar_info.fget
        patch.setattr(kind, "_cifar_info", property(lambda x: of_builder(x)._replace(url=url)))


class Archive(NamedTuple):
    """A miniature of a CIFAR archive: what is in it, in order, and where it is.

    `images` is `[n, 32, 32, 3]` and `labels` `[n, 1]`, or `[n, 2]` with the coarse label first.
    The last `num_test` are those of the test file.
    """

    images: np.ndarray
    labels: np.ndarray
    num_test: int
    path: Path


def write_archive(name: str, folder: Path, surplus: bytes = b"") -> Archive:
    """Writes a miniature archive; `surplus` follows the last record of every file."""
    rng = np.random.default_rng(0)
    if name == "cifar10":
        sizes = {f"data_batch_{index}.bin": 10 for index in range(1, 6)} | {"test_batch.bin": 10}
        labels = rng.permutation(60)[:, None] % 10
        names = {"batches.meta.txt": CIFAR10_NAMES}
    else:
        sizes = {"train.bin": 300, "test.bin": 100}
        fine = np.concatenate([rng.permutation(300), rng.permutation(100)]) % 100
        labels = np.stack([fine * 7 % 20, fine], axis=1)
        names = {"coarse_label_names.txt": COARSE_NAMES, "fine_label_names.txt": FINE_NAMES}
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    records = np.concatenate([labels.astype(np.uint8), planes], axis=1)
    pieces = np.split(records, np.cumsum([*sizes.values()])[:-1])
    files = {file: ("\n".join(content) + "\n\n").encode() for file, content in names.items()}
    for file, piece in zip(sizes, pieces, strict=True):
        files[file] = piece.tobytes() + surplus
    path = folder / "archive.tar.gz"
    top = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[name]
    with tarfile.open(path, "w:gz") as tar:
        for file, content in files.items():
            info = tarfile.TarInfo(f"{top}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Archive(images, labels, len(pieces[-1]), path)


@contextlib.contextmanager
def served(name: str, archive: Archive, answers_head: bool = True) -> Iterator[str]:
    """Serves an archive on the loopback as if it were the official one; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_HEAD(self):
            if answers_head:
                super().do_HEAD()
            else:
                self.send_error(405)

    handler = functools.partial(Quiet, directory=str(archive.path.parent))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
        name_archive(patch, name, url)
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A TFDS directory of miniature sets, not to be written: see `copy_of`."""
    tiny = pytest.importorskip("tests.data.tiny")
    root = tmp_path_factory.mktemp("prepared")
    tiny.prepare_all(root)
    return root


@pytest.fixture
def copy_of(prepared, tmp_path):
    """Copies one of the miniature sets; gives the directory and the folder with its files."""

    def copy(name: str) -> tuple[Path, Path]:
        root = tmp_path / "copy"
        shutil.copytree(prepared / name, root / name)
        (description,) = (root / name).rglob("dataset_info.json")
        return root, description.parent

    return copy


def same_images(found: np.ndarray, expected: np.ndarray) -> bool:
    return sorted(i.tobytes() for i in found) == sorted(i.tobytes() for i in expected)
