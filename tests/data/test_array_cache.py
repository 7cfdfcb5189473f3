import contextlib
import logging
import os
import pwd
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from edl_jax.data import arrays, datasets
from edl_jax.data.arrays import LazyArray, read_rows
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.data.tfds_source import prepared_files
from edl_jax.errors import DataError
from edl_jax.runs.storage import TEMPORARY, user_cache

ARRAY = np.arange(24, dtype=np.int32).reshape(6, 4)


class Source:
    """Counts how often the array is read."""

    def __init__(self, array=ARRAY):
        self.array, self.count = array, 0

    def read(self, rows):
        self.count += 1
        return self.array[rows]


class Broken(Source):
    def read(self, rows):
        return self.array[rows + 1]


def load(path, source):
    array = source.array
    rows = np.arange(len(array))
    return read_rows(LazyArray(rows, array.shape[1:], array.dtype, source.read, "", path), rows)


def test_computed_once_then_mapped(tmp_path):
    source, path = Source(), tmp_path / "a" / "b" / "item.npy"
    for _ in range(3):
        found = load(path, source)
        np.testing.assert_array_equal(found, ARRAY)
        assert found.dtype == ARRAY.dtype
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0
    assert source.count == 1
    assert [*path.parent.iterdir()] == [path]  # and nothing temporary
    np.testing.assert_array_equal(np.load(path), ARRAY)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 3, 1)])
def test_any_shape(tmp_path, dtype, shape):
    array = np.ones(shape, dtype)
    for _ in range(2):
        found = load(tmp_path / "item.npy", Source(array))
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "folder"])
def test_damage_is_noticed_and_mended(tmp_path, caplog, damage):
    path = tmp_path / "item.npy"
    load(path, Source())
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        flipped = bytes(byte ^ 255 for byte in content)
        changed = {"empty": b"", "truncated": content[:-1], "flipped": flipped}
        path.write_bytes(changed[damage])
    source = Source()
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(load(path, source), ARRAY)
    assert source.count >= 1
    assert ("written again" in caplog.text) == (damage != "missing")
    if damage != "folder":  # which cannot be replaced by a file
        np.testing.assert_array_equal(load(path, source), ARRAY)
        assert source.count == 1


@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_an_array_of_another_kind_is_replaced(tmp_path, caplog, change):
    old = load(tmp_path / "item.npy", Source())
    array = {"dtype": ARRAY.astype(np.float32), "shape": ARRAY.reshape(6, 2, 2)}[change]
    source = Source(array + 1)
    for _ in range(2):
        found = load(tmp_path / "item.npy", source)
        np.testing.assert_array_equal(found, array + 1)
    assert source.count == 1
    assert "it is int32[6, 4]" in caplog.text
    np.testing.assert_array_equal(old, ARRAY)  # what is in use outlives its replacement


def blocked(tmp_path: Path) -> Path:
    """A folder that nobody can make, not even root: its parent is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_folder_that_can_be_written_there_is_no_cache(tmp_path, caplog, exists):
    source = Source()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = load(blocked(tmp_path) / "item.npy" if exists else None, source)
            np.testing.assert_array_equal(found, ARRAY)
    assert source.count == 2
    assert ("is not kept" in caplog.text) == exists


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def full(path):
        with open_atomically(path) as file:
            yield file
            raise OSError(28, "No space left on device")

    open_atomically = arrays.open_atomically
    monkeypatch.setattr(arrays, "open_atomically", full)
    np.testing.assert_array_equal(load(tmp_path / "item.npy", Source()), ARRAY)
    assert not [*tmp_path.iterdir()]


def test_an_error_while_reading_leaves_nothing_behind(tmp_path):
    with pytest.raises(IndexError):
        load(tmp_path / "item.npy", Broken())
    assert not [*tmp_path.iterdir()]


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / f".item.npy.left{TEMPORARY}"
    left.write_bytes(b"half")
    load(tmp_path / "item.npy", Source())
    assert not left.exists()


def test_threads_that_write_at_once_all_get_the_array(tmp_path):
    barrier, found, path = threading.Barrier(6), [], tmp_path / "item.npy"

    def work():
        barrier.wait()
        for _ in range(20):
            found.append(np.array_equal(load(path, Source()), ARRAY))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 120
    assert [*tmp_path.iterdir()] == [path]


# In a data set


def load_cells(root: Path, **options):
    datasets._load.cache_clear()
    return load_dataset(DataConfig("tiny_cells", data_dir=root, **options))


@pytest.fixture
def caches(tmp_path):
    """The folders in the user's cache, in order."""
    return lambda: sorted((tmp_path / "home cache" / "edl_jax").iterdir())


def test_decoded_images_are_kept_in_the_users_cache_alone(copy_of, caches, monkeypatch):
    root, _ = copy_of("tiny_cells")
    before = sorted(root.rglob("*"))
    first = load_cells(root, val_examples=9)
    (cache,) = caches()
    assert cache.name == "tiny_cells-1.0.0"
    assert sorted(path.name.rpartition("-")[0] for path in cache.iterdir()) == sorted(
        f"{split}-{item}" for split in ("train", "test") for item in ("image", "label")
    )
    assert sorted(root.rglob("*")) == before

    def decode(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr("edl_jax.data.tfds_source.decode_image", decode)
    again = load_cells(root, val_examples=9)
    for name in ("train_images", "val_images", "test_images", "train_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    with pytest.raises(DataError, match="decoded again"):
        load_cells(root, image_size=5)


def test_what_an_older_version_kept_beside_the_data_is_left_alone(copy_of):
    root, _ = copy_of("tiny_cells")
    old = root / ".edl_jax" / "tiny_cells-1.0.0" / "train_images.npy"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    load_cells(root)
    assert [path for path in (root / ".edl_jax").rglob("*") if path.is_file()] == [old]
    assert old.read_text() == "old"


def test_each_size_and_each_folder_has_a_cache_of_its_own(copy_of, caches, tmp_path):
    root, _ = copy_of("tiny_cells")
    load_cells(root)
    load_cells(root, image_size=5)
    shutil.copytree(root, tmp_path / "elsewhere")
    load_cells(tmp_path / "elsewhere")
    (cache,) = caches()
    assert len([*cache.glob("test-image-*.npy")]) == 3


@pytest.mark.parametrize("name", ["train-image", "test-label"])
def test_a_damaged_cache_is_mended_from_the_records(copy_of, caches, name):
    root, _ = copy_of("tiny_cells")
    first = load_cells(root)
    (path,) = caches()[0].glob(f"{name}-*.npy")
    whole = path.read_bytes()
    path.unlink()  # else the arrays that are mapped would change too
    path.write_bytes(whole[:-20])
    again = load_cells(root)
    np.testing.assert_array_equal(again.train_images, first.train_images)
    np.testing.assert_array_equal(again.test_labels, first.test_labels)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["touched records", "another Pillow"])
def test_a_cache_of_something_else_is_not_used(copy_of, caches, monkeypatch, change):
    root, folder = copy_of("tiny_cells")
    load_cells(root)
    if change == "touched records":
        for path in folder.glob("*test*"):
            path.touch()
    else:
        monkeypatch.setattr("PIL.__version__", "0.0")
    load_cells(root)
    assert len([*caches()[0].glob("test-image-*.npy")]) == 2


def test_nothing_writable_does_without_a_cache(copy_of, caches, tmp_path, monkeypatch):
    root, _ = copy_of("tiny_cells")
    expected = load_cells(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked(tmp_path)))
    np.testing.assert_array_equal(load_cells(root).train_images, expected.train_images)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("edl_jax.data.tfds_source.user_cache", lambda: None)
    without = load_cells(root)
    np.testing.assert_array_equal(without.train_images, expected.train_images)
    assert not without.train_images.flags.writeable
    assert len(caches()) == 1


def test_the_users_folder_follows_the_environment(monkeypatch, tmp_path):
    assert user_cache() == tmp_path / "home cache" / "edl_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "edl_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/kept")
    assert user_cache() == tmp_path / "kept" / "edl_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-at-all/kept")
    assert user_cache() is None


def test_a_user_without_a_home_has_nothing_prepared(monkeypatch):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user_cache() == Path(os.environ["XDG_CACHE_HOME"]) / "edl_jax"
    assert prepared_files("mnist", None) == ()
