import functools
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from edl_jax.errors import ConfigError, DataError
from edl_jax.training import datasets
from edl_jax.training.datasets import load_dataset

SHARED = Path(__file__).parents[2] / "shared" / "tfds"
NO_SERVER = "http://127.0.0.1:9/cifar-10-binary.tar.gz"  # the discard port: refused at once
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
needs_cifar10 = pytest.mark.skipif(not SHARED.exists(), reason="no prepared CIFAR-10 here")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test sees this machine's network, environment or TFDS directory, nor another's cache."""
    monkeypatch.setattr(datasets, "CIFAR10_URL", NO_SERVER)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    datasets._load.cache_clear()


def write_archive(folder: Path, surplus: bytes = b"") -> tuple[np.ndarray, np.ndarray]:
    """Writes a CIFAR-10 archive of 10 images a file; returns all images and labels in order.

    `surplus` follows the last record of every file, as where a file ends within a record.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = rng.permutation(60).astype(np.uint8) % 10
    files = {"batches.meta.txt": "\n".join(LABELS).encode() + b"\n\n"}
    names = [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]
    for index, name in enumerate(names):
        rows = slice(10 * index, 10 * index + 10)
        planes = images[rows].transpose(0, 3, 1, 2).reshape(10, 3072)
        files[name] = np.concatenate([labels[rows, None], planes], axis=1).tobytes() + surplus
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return images, labels


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """Serves a miniature archive on the loopback; gives its images, labels and path."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    images, labels = write_archive(folder)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(datasets, "CIFAR10_URL", url)
        yield images, labels, folder / "cifar-10-binary.tar.gz"
        server.shutdown()
        thread.join()


def same_images(found: np.ndarray, expected: np.ndarray) -> bool:
    return sorted(i.tobytes() for i in found) == sorted(i.tobytes() for i in expected)


# CIFAR-10


@needs_cifar10
def test_cifar10_subsets_come_from_the_two_ends_of_the_train_split():
    tfds = pytest.importorskip("tensorflow_datasets")
    data = load_dataset(
        "cifar10", data_dir=SHARED, train_examples=1500, val_examples=30, test_examples=20
    )
    assert data.source == f"CIFAR-10 prepared in {SHARED}"
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 4, True)
    assert data.train_images.shape == (1500, 32, 32, 3)
    direct = tfds.data_source("cifar10", data_dir=str(SHARED))
    for part, split, start in [
        ("train", "train", 0),
        ("val", "train", 49_970),
        ("test", "test", 0),
    ]:
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        for row in (0, len(images) // 2, len(images) - 1):
            example = direct[split][start + row]
            np.testing.assert_array_equal(images[row], example["image"])
            assert labels[row] == example["label"]


@needs_cifar10
@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_environment_names_the_directory(monkeypatch, name):
    monkeypatch.setenv("TFDS_DATA_DIR", str(SHARED))
    data = load_dataset(name, train_examples=5, val_examples=0, test_examples=5)
    assert data.name == "cifar10"
    assert data.source == f"CIFAR-10 prepared in {SHARED}"
    assert data.val_images.shape == (0, 32, 32, 3)
    assert load_dataset(name, train_examples=5, val_examples=0, test_examples=5) is data


@needs_cifar10
@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ({"train_examples": 49_000, "val_examples": 1_001}, "49000.*1001.*50000"),
        ({"test_examples": 10_001}, "10001.*10000"),
        ({"val_examples": 50_000}, "50000"),
        ({"val_examples": -1}, "-1"),
        ({"train_examples": 0}, "0 train"),
        ({"test_examples": 0}, "0 test"),
    ],
)
def test_more_examples_than_there_are_is_refused_before_reading(counts, named):
    with pytest.raises(ConfigError, match=named):
        load_dataset("cifar10", data_dir=SHARED, **counts)


@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_directory_without_cifar10_is_an_error_and_stays_as_it_is(tmp_path, name):
    with pytest.raises(DataError, match=r"not prepared in .*asked.*could not be downloaded.*Name "):
        load_dataset(name, data_dir=tmp_path / "asked")
    assert not (tmp_path / "asked").exists()


def copy_of_cifar10(tmp_path: Path) -> Path:
    shutil.copytree(
        SHARED / "cifar10", tmp_path / "copy" / "cifar10", copy_function=shutil.copyfile
    )
    (folder,) = (tmp_path / "copy" / "cifar10").iterdir()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


@needs_cifar10
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "flipped"])
def test_damaged_records_are_an_error_that_names_the_folder(tmp_path, damage):
    folder = copy_of_cifar10(tmp_path)
    (path,) = folder.glob("cifar10-test.array_record*")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        middle = len(content) // 200
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: 5_000_000 if damage == "truncated" else 0])
    with pytest.raises(DataError, match=r"test split of CIFAR-10 in .*copy.*delete the folder"):
        load_dataset("auto", data_dir=tmp_path / "copy", train_examples=1, test_examples=100)


@needs_cifar10
def test_damaged_description_is_an_error(tmp_path):
    folder = copy_of_cifar10(tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot open CIFAR-10 in .*copy.*delete the folder"):
        load_dataset("cifar10", data_dir=tmp_path / "copy")


@needs_cifar10
def test_other_record_format_is_named_and_auto_does_without(monkeypatch, tmp_path):
    path = copy_of_cifar10(tmp_path) / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "copy"))
    with pytest.raises(DataError, match=r"CIFAR-10 in .*copy is not in ArrayRecord format"):
        load_dataset("cifar10")
    assert "is not in ArrayRecord format" in load_dataset("auto").source


@needs_cifar10
@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_half_copied_folder_is_not_taken_for_a_prepared_one(tmp_path, name):
    (copy_of_cifar10(tmp_path) / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="is not prepared in"):
        load_dataset(name, data_dir=tmp_path / "copy")


@needs_cifar10
def test_loading_never_imports_tensorflow(tmp_path):
    """With a tensorflow that could be imported, so that the test means something."""
    (tmp_path / "tensorflow.py").write_text("")
    code = (
        "import sys; from edl_jax.training.datasets import load_dataset\n"
        "assert not {'tensorflow_datasets', 'sklearn'} & set(sys.modules)\n"
        "load_dataset('cifar10', data_dir=sys.argv[1], train_examples=5, test_examples=5)\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    subprocess.run([sys.executable, "-c", code, str(SHARED)], check=True, env=environment)


# Downloading


@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_download_prepares_every_image_without_tensorflow(archive, tmp_path, name):
    images, labels, _ = archive
    root = tmp_path / "fresh"
    data = load_dataset(name, data_dir=root)
    assert data.source == f"CIFAR-10 downloaded to and prepared in {root}"
    assert same_images(data.train_images, images[:50])
    assert same_images(data.test_images, images[50:])
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert [label_of[image.tobytes()] for image in data.train_images] == data.train_labels.tolist()
    assert np.any(data.train_images != images[:50])  # TFDS shuffles
    assert "tensorflow" not in sys.modules
    (folder,) = (root / "cifar10").iterdir()
    assert (folder / "label.labels.txt").read_text().split() == LABELS
    archive[2].unlink()
    again = load_dataset(name, data_dir=root, val_examples=10)
    assert again.source == f"CIFAR-10 prepared in {root}"
    np.testing.assert_array_equal(
        np.concatenate([again.train_images, again.val_images]), data.train_images
    )


@pytest.mark.parametrize("damage", ["checksum", "truncated archive", "part of a record"])
def test_half_finished_download_is_not_taken_for_a_data_set(archive, monkeypatch, tmp_path, damage):
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification.cifar import Cifar10

    path = archive[2]
    if damage == "checksum":
        info = checksums.UrlInfo(size=path.stat().st_size, checksum="0" * 64, filename=path.name)
        monkeypatch.setattr(Cifar10, "url_infos", {datasets.CIFAR10_URL: info})
    elif damage == "truncated archive":
        path.write_bytes(path.read_bytes()[:50_000])
    else:
        write_archive(path.parent, surplus=b"12345")
    root = tmp_path / "fresh"
    with pytest.raises(DataError, match="could not be downloaded"):
        load_dataset("cifar10", data_dir=root)
    assert not [*root.glob("cifar10/*/dataset_info.json")]
    assert load_dataset("digits").name == "digits"


def test_official_archive_is_the_one_whose_checksum_tfds_knows(monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.image_classification.cifar import Cifar10

    monkeypatch.undo()
    assert datasets.CIFAR10_URL in (Cifar10.url_infos or {})


# Digits


def test_digits_are_split_shuffled_and_scaled():
    from sklearn.datasets import load_digits

    data = load_dataset("digits", val_examples=100)
    assert data.source == "scikit-learn's handwritten digits"
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 1, False)
    parts = [(data.train_images, data.train_labels), (data.val_images, data.val_labels)]
    parts.append((data.test_images, data.test_labels))
    assert [images.shape for images, _ in parts] == [(n, 8, 8, 1) for n in (1337, 100, 360)]
    loaded: dict = load_digits()  # type: ignore[assignment]
    images = np.concatenate([images for images, _ in parts])
    expected = np.rint(loaded["images"] * 255 / 16).astype(np.uint8)[..., None]
    assert same_images(images, expected)
    assert images.max() == 255
    labels = np.concatenate([labels for _, labels in parts])
    pairs = {
        image.tobytes(): label for image, label in zip(expected, loaded["target"], strict=True)
    }
    assert [pairs[image.tobytes()] for image in images] == labels.tolist()
    for _, part in parts:
        assert part.dtype == np.int32
        assert np.bincount(part).min() > 0.05 * len(part)
    assert np.any(images != expected)


def test_digits_subsets_are_nested_and_repeatable():
    large = load_dataset("digits", val_examples=37)
    datasets._load.cache_clear()
    small = load_dataset("digits", train_examples=20, val_examples=37, test_examples=10)
    assert small is not large
    np.testing.assert_array_equal(small.train_images, large.train_images[:20])
    np.testing.assert_array_equal(small.val_labels, large.val_labels)
    np.testing.assert_array_equal(small.test_images, large.test_images[:10])


def test_auto_without_cifar10_is_digits_and_says_why(tmp_path):
    data = load_dataset("auto")
    assert data.name == "digits"
    folder = tmp_path / "empty"
    reason = f"CIFAR-10 is not prepared in {folder} and could not be downloaded: "
    assert data.source.startswith(f"scikit-learn's handwritten digits ({reason}")


def test_mean_and_std_are_those_of_the_train_images():
    data = load_dataset("digits", train_examples=50)
    assert data.mean.dtype == data.std.dtype == np.float32
    pixels = data.train_images.reshape(-1, 1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(axis=0), rtol=1e-6)


def test_loaded_once_and_read_only():
    data = load_dataset("digits")
    assert load_dataset("digits") is data
    for array in (data.train_images, data.train_labels, data.val_images, data.test_images):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_labels_out_of_range_are_an_error(monkeypatch):
    from sklearn import datasets as sklearn_datasets

    loaded: dict = sklearn_datasets.load_digits()  # type: ignore[assignment]
    loaded["target"] = loaded["target"] + 1
    monkeypatch.setattr(sklearn_datasets, "load_digits", lambda: loaded)
    with pytest.raises(DataError, match=r"labels out of range 0\.\.9"):
        load_dataset("digits")


def test_unknown_name_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'mnist'.*auto, cifar10, digits"):
        load_dataset("mnist")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("cifar10", "tensorflow_datasets"),
        ("cifar10", "array_record"),
        ("cifar10", "PIL"),
        ("cifar10", "importlib_resources"),
        ("digits", "sklearn"),
        ("auto", "sklearn"),
    ],
)
def test_missing_dependency_says_what_to_install(monkeypatch, name, missing):
    loaded = [module for module in sys.modules if module.split(".")[0] == missing]
    for module in {missing, *loaded}:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf'{missing}.*pip install "edl_jax\[data\]"'):
        load_dataset(name)
