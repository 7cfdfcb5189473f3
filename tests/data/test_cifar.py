import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edl_jax.data import tfds_source
from edl_jax.data.arrays import LazyArray
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError, DataError
from tests.data.conftest import (
    CIFAR10_NAMES,
    COARSE_NAMES,
    FINE_NAMES,
    same_images,
    served,
    write_archive,
)

pytest.importorskip("tensorflow_datasets")
SHARED = Path(__file__).parents[3] / "shared" / "tfds"
needs_cifar10 = pytest.mark.skipif(not SHARED.exists(), reason="no prepared CIFAR-10 here")


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    """CIFAR-10 and CIFAR-100 in miniature, downloaded to one directory; and their archives."""
    root, archives = tmp_path_factory.mktemp("cifar"), {}
    for name in ("cifar10", "cifar100"):
        archives[name] = write_archive(name, tmp_path_factory.mktemp(name))
        serving = served(name, archives[name], answers_head=name == "cifar10")
        with pytest.MonkeyPatch.context() as patch, serving:
            patch.setenv("XDG_CACHE_HOME", str(root / "home cache"))
            data = load_dataset(DataConfig(name, data_dir=root, train_examples=1, test_examples=1))
            assert data.source == f"{name} prepared in {root}/{name}/3.0.2"
    return root, archives


@pytest.fixture
def copied(miniatures, tmp_path):
    """A copy of the miniature CIFAR-10; the folder of its files."""
    shutil.copytree(miniatures[0] / "cifar10", tmp_path / "copy" / "cifar10")
    (folder,) = (tmp_path / "copy" / "cifar10").iterdir()
    return folder


# The prepared CIFAR-10, of which tests decode little


@needs_cifar10
def test_cifar10_subsets_are_those_of_tfds():
    import tensorflow_datasets as tfds

    data = load_dataset(
        DataConfig(
            "cifar10", data_dir=SHARED, train_examples=500, val_examples=30, test_examples=20
        )
    )
    assert data.source == f"cifar10 prepared in {SHARED}/cifar10/3.0.2"
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 4, True)
    assert data.class_names == CIFAR10_NAMES
    assert data.train_images.shape == (500, 32, 32, 3)
    held_out = np.sort(np.random.default_rng(0).permutation(50_000)[:30])
    rows = {"train": np.setdiff1d(np.arange(600), held_out)[:500], "val": held_out}
    direct = tfds.data_source("cifar10", data_dir=str(SHARED))
    for part, split in [("train", "train"), ("val", "train"), ("test", "test")]:
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        for row in (0, len(images) // 2, len(images) - 1):
            example = direct[split][int(rows.get(part, np.arange(20))[row])]
            np.testing.assert_array_equal(images[row], example["image"])
            assert labels[row] == example["label"]


@needs_cifar10
@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_environment_names_the_directory(monkeypatch, name):
    monkeypatch.setenv("TFDS_DATA_DIR", str(SHARED))
    data = load_dataset(DataConfig(name, train_examples=5, val_examples=0, test_examples=5))
    assert data.name == "cifar10"
    assert data.source == f"cifar10 prepared in {SHARED}/cifar10/3.0.2"
    assert data.val_images.shape == (0, 32, 32, 3)
    assert load_dataset(DataConfig(name, train_examples=5, val_examples=0, test_examples=5)) is data


@needs_cifar10
def test_more_examples_than_there_are_is_refused_before_reading():
    with pytest.raises(ConfigError, match=r"train_examples is 49000, val_examples 1001 .*50000"):
        load_dataset(
            DataConfig("cifar10", data_dir=SHARED, train_examples=49_000, val_examples=1_001)
        )


# Miniatures of the official archives


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_download_prepares_every_image_without_tensorflow(miniatures, name):
    root, archives = miniatures
    images, labels, num_test, _ = archives[name]
    data = load_dataset(
        DataConfig(name, data_dir=root)
    )  # from the files alone: nothing is served now
    assert data.name == name
    assert data.class_names == (CIFAR10_NAMES if name == "cifar10" else FINE_NAMES)
    assert data.num_classes == len(data.class_names)
    assert same_images(data.train_images, images[:-num_test])
    assert same_images(data.test_images, images[-num_test:])
    label_of = {image.tobytes(): row[-1] for image, row in zip(images, labels, strict=True)}
    for part in ("train", "test"):
        found = [label_of[image.tobytes()] for image in getattr(data, f"{part}_images")]
        assert found == getattr(data, f"{part}_labels").tolist()
    assert np.any(data.train_images != images[:-num_test])  # TFDS shuffles
    assert "tensorflow" not in sys.modules
    (folder,) = (root / name).iterdir()
    if name == "cifar100":
        assert (folder / "coarse_label.labels.txt").read_text().split() == [*COARSE_NAMES]


def test_without_validation_the_train_images_are_the_first_ones(miniatures):
    import tensorflow_datasets as tfds

    direct = tfds.data_source("cifar10", data_dir=str(miniatures[0]), split="train")
    data = load_dataset(DataConfig("auto", data_dir=miniatures[0], train_examples=20))
    np.testing.assert_array_equal(data.train_images, [direct[row]["image"] for row in range(20)])


def test_asymmetric_noise_takes_half_of_five_classes_for_others(miniatures):
    root, _ = miniatures
    clean = load_dataset(DataConfig("cifar10", data_dir=root))
    noisy = load_dataset(
        DataConfig("cifar10", data_dir=root, label_noise="asymmetric", noise_rate=0.5)
    )
    flips = {"bird": "airplane", "cat": "dog", "deer": "horse", "dog": "cat", "truck": "automobile"}
    for label, name in enumerate(CIFAR10_NAMES):
        found = noisy.train_labels[clean.train_labels == label]
        wrong = found[found != label]
        assert len(wrong) == (round(0.5 * len(found)) if name in flips else 0)
        assert {CIFAR10_NAMES[x] for x in wrong} <= {flips.get(name)}
    np.testing.assert_array_equal(clean.test_labels, noisy.test_labels)
    np.testing.assert_array_equal(clean.train_images, noisy.train_images)


def test_imbalance_then_noise_on_the_train_part_only(miniatures):
    clean = load_dataset(DataConfig("cifar10", data_dir=miniatures[0], val_examples=5))
    smallest = int(clean.class_counts.min())
    data = load_dataset(
        DataConfig(
            "cifar10",
            data_dir=miniatures[0],
            val_examples=5,
            imbalance="step",
            imbalance_factor=smallest,
        )
    )
    np.testing.assert_array_equal(data.class_counts, [smallest] * 5 + [1] * 5)
    images, labels, *_ = miniatures[1]["cifar10"]
    label_of = {image.tobytes(): row[0] for image, row in zip(images, labels, strict=True)}
    assert [label_of[image.tobytes()] for image in data.train_images] == data.train_labels.tolist()
    noisy = load_dataset(
        DataConfig(
            "cifar10",
            data_dir=miniatures[0],
            val_examples=5,
            imbalance="step",
            imbalance_factor=smallest,
            label_noise="symmetric",
            noise_rate=1.0,
        )
    )
    np.testing.assert_array_equal(noisy.train_images, data.train_images)
    assert np.all(noisy.train_labels != data.train_labels)
    for part in ("val", "test"):
        for kind in ("images", "labels"):
            expected = getattr(clean, f"{part}_{kind}")
            np.testing.assert_array_equal(getattr(noisy, f"{part}_{kind}"), expected)


@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_half_copied_folder_is_not_taken_for_a_prepared_one(copied, name):
    (copied / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="is not prepared in"):
        load_dataset(DataConfig(name, data_dir=copied.parents[1]))


@pytest.mark.parametrize("form", ["tfrecord", "parquet"])
def test_other_record_format_is_named_and_auto_does_without(monkeypatch, copied, form):
    path = copied / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", form))
    monkeypatch.setenv("TFDS_DATA_DIR", str(copied.parents[1]))
    with pytest.raises(DataError, match=r"cifar10 in .*copy is not in ArrayRecord format"):
        load_dataset(DataConfig("cifar10"))
    assert "is not in ArrayRecord format" in load_dataset(DataConfig("auto")).source


def test_auto_does_not_pass_over_damage(monkeypatch, copied):
    (records,) = copied.glob("*-test.array_record*")
    records.write_bytes(records.read_bytes()[:1000])
    monkeypatch.setenv("TFDS_DATA_DIR", str(copied.parents[1]))
    with pytest.raises(DataError, match=r"cannot read the test split of cifar10 in .*copy"):
        load_dataset(DataConfig("auto"))


@pytest.mark.parametrize("name", ["cifar10", "auto", "cifar100", "mnist"])
def test_directory_without_the_set_is_an_error_and_stays_as_it_is(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    if name == "mnist":
        monkeypatch.setattr(tfds_source.urllib.request, "urlopen", refuse)
    with pytest.raises(
        DataError, match=r"not prepared in .*asked.*could not be downloaded.*Set data_dir "
    ):
        load_dataset(DataConfig(name, data_dir=tmp_path / "asked"))
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("damage", ["checksum", "truncated archive", "part of a record"])
def test_half_finished_download_is_not_taken_for_a_data_set(monkeypatch, tmp_path, damage):
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification.cifar import Cifar10

    surplus = b"12345" if damage == "part of a record" else b""
    (tmp_path / "served").mkdir()
    archive = write_archive("cifar10", tmp_path / "served", surplus)
    path, root = archive.path, tmp_path / "fresh"
    with served("cifar10", archive) as url:
        if damage == "checksum":
            size = path.stat().st_size
            info = checksums.UrlInfo(size=size, checksum="0" * 64, filename=path.name)
            monkeypatch.setattr(Cifar10, "url_infos", {url: info})
        elif damage == "truncated archive":
            path.write_bytes(path.read_bytes()[:50_000])
        with pytest.raises(DataError, match="could not be downloaded"):
            load_dataset(DataConfig("cifar10", data_dir=root))
    assert not [*root.glob("cifar10/*/dataset_info.json")]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("cifar10", "tensorflow_datasets"),
        ("cifar10", "array_record"),
        ("cifar10", "PIL"),
        ("digits", "sklearn"),
        ("auto", "sklearn"),
    ],
)
def test_missing_dependency_says_what_to_install(monkeypatch, name, missing):
    loaded = [module for module in sys.modules if module.split(".")[0] == missing]
    for module in {missing, *loaded}:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf'{missing}.*pip install "edl_jax\[data\]"'):
        load_dataset(DataConfig(name))


def test_streamed_cifar_is_that_in_memory(miniatures):
    root, _ = miniatures
    options = {"data_dir": root, "val_examples": 7, "imbalance": "step", "imbalance_factor": 1}
    memory = load_dataset(DataConfig("cifar10", **options))
    streamed = load_dataset(DataConfig("cifar10", **options, stream=True))
    assert (memory.streamed, streamed.streamed) == (False, True)
    for part in ("train", "val", "test"):
        expected, found = (getattr(data, f"{part}_images") for data in (memory, streamed))
        assert isinstance(found, LazyArray)
        assert (found.shape, found.dtype, len(found)) == (
            expected.shape,
            expected.dtype,
            len(expected),
        )
        for indices in ([3, 0, 3], [[1], [2]], 4, -1, slice(1, 5), np.arange(0)):
            np.testing.assert_array_equal(found[indices], expected[indices])
        labels = (getattr(data, f"{part}_labels") for data in (memory, streamed))
        np.testing.assert_array_equal(*labels)
    np.testing.assert_array_equal(streamed.mean, memory.mean)
    np.testing.assert_array_equal(streamed.std, memory.std)
    with pytest.raises(IndexError):
        streamed.val_images[[7]]
