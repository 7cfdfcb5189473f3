"""Folders of images, a sub-folder for each class."""

import numpy as np
import pytest

from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import DataError

image_of = pytest.importorskip("PIL.Image").fromarray


def write(path, value, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image_of(np.full((*size, 3), value, np.uint8)).save(path)


def loaded(root, **options):
    return load_dataset(DataConfig(f"folder:{root}", **options))


def test_train_and_test_folders_are_the_splits(tmp_path):
    for split, values in (("train", (10, 20, 30)), ("test", (40,))):
        for name, extra in (("cat", 0), ("ant", 1)):
            for value in values:
                write(tmp_path / split / name / f"{value}.png", value + extra)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = loaded(tmp_path)
    assert data.class_names == ("ant", "cat")
    assert data.train_images.shape == (6, 6, 6, 3)
    found = zip(data.train_images[:, 0, 0, 0].tolist(), data.train_labels.tolist(), strict=True)
    assert sorted(found) == [(10, 1), (11, 0), (20, 1), (21, 0), (30, 1), (31, 0)]
    assert sorted(data.test_images[:, 0, 0, 0].tolist()) == [40, 41]
    assert loaded(tmp_path) is data
    write(tmp_path / "test" / "ant" / "40.png", 50, size=(6, 6))
    assert loaded(tmp_path).digest != data.digest


def test_one_folder_is_split_once_for_all_seeds_and_images_are_resized(tmp_path):
    for index in range(10):
        write(tmp_path / "ab"[index % 2] / f"{index}.jpg", 20 * index, size=(6, 6 + index))
    data, other = loaded(tmp_path, image_size=4), loaded(tmp_path, image_size=4, split_seed=1)
    assert data.train_images.shape == (8, 4, 4, 3)
    np.testing.assert_array_equal(data.test_images, other.test_images)
    values = np.concatenate([data.train_images, data.test_images])[:, 0, 0, 0]
    np.testing.assert_allclose(np.sort(values), 20 * np.arange(10), atol=1)
    with pytest.raises(DataError, match=r"pixels, and .*expected all alike, or an image_size"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "expected a sub-folder of images"),
        (("a/1.png",), "expected a sub-folder of images"),
        (("train/a/1.png", "train/b/1.png", "test/a/1.png"), "'train': .'a', 'b'.*'test': .'a'"),
        (("a/broken.png", "b/broken.png"), "cannot be read as an image"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(files, message, tmp_path):
    for name in files:
        path = tmp_path / name
        write(path, 1)
        if "broken" in name:
            path.write_bytes(b"no image")
    with pytest.raises(DataError, match=message):
        loaded(tmp_path)


def test_sixteen_bits_a_pixel_are_scaled_and_wider_ones_refused(tmp_path):
    gray = np.arange(0, 65536, 16, np.int32).reshape(64, 64)
    for split in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / split / name / "x.png", 7, size=(64, 64))
    image_of(gray.astype(np.uint16)).save(tmp_path / "train" / "a" / "x.png")
    images, labels = (getattr(loaded(tmp_path), f"train_{kind}") for kind in ("images", "labels"))
    (found,) = images[np.asarray(labels) == 0]
    np.testing.assert_array_equal(found, np.repeat(gray[..., None] // 256, 3, axis=-1))
    image_of(gray.astype(np.float32)).save(tmp_path / "train" / "a" / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff cannot be read as an image \(its mode is 'F'"):
        loaded(tmp_path)


def test_the_first_images_of_a_split_are_of_all_classes_and_hidden_ones_of_none(tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(("a", "b", "c", ".ipynb_checkpoints")):
            for index in range(8):
                write(tmp_path / split / name / f"{index}.png", 10 * label + index)
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"of another system")
    data = loaded(tmp_path, train_examples=12, test_examples=12)
    assert data.class_names == ("a", "b", "c")
    for labels in (data.train_labels, data.test_labels):
        assert {*np.asarray(labels).tolist()} == {0, 1, 2}


def test_images_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / split / name / "x.png", 7)
    (tmp_path / "train" / "a" / "y.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"y\.png cannot be read \(No such file"):
        loaded(tmp_path)
    (tmp_path / "train" / "a" / "y.png").unlink()
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image"):
        loaded(tmp_path)
