import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edl_jax.errors import DataError
from edl_jax.training import array_cache, datasets
from edl_jax.training.array_cache import cached_array
from edl_jax.training.datasets import load_dataset

ORIGIN = {"set": "some", "files": [["a", 1, 2]]}
ARRAY = np.arange(24, dtype=np.int32).reshape(6, 4)


class Source:
    """Counts how often the array is computed, in two chunks."""

    def __init__(self, array=ARRAY):
        self.array, self.count = array, 0

    def chunks(self):
        self.count += 1
        yield self.array[:4]
        yield self.array[4:]


def load(folders, source, origin=ORIGIN, item="item", array=ARRAY):
    return cached_array(
        folders, item, origin, dtype=array.dtype, shape=array.shape, chunks=source.chunks
    )


def test_computed_once_then_mapped(tmp_path):
    source = Source()
    for _ in range(3):
        found = load([tmp_path / "a" / "b"], source)
        np.testing.assert_array_equal(found, ARRAY)
        assert found.dtype == ARRAY.dtype
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0
    assert source.count == 1
    files = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert files == ["item.json", "item.npy"]  # and nothing temporary
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "b" / "item.npy"), ARRAY)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 3, 1)])
def test_any_shape(tmp_path, dtype, shape):
    array = np.ones(shape, dtype)
    for _ in range(2):
        found = load([tmp_path], Source(array), array=array)
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", ["item.npy", "item.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer", "flipped", "folder"])
def test_damage_to_any_file_is_noticed_and_mended(tmp_path, caplog, name, damage):
    load([tmp_path], Source())
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        changed = {
            "empty": b"",
            "truncated": content[:-1],
            "longer": content + b"0",
            "flipped": bytes(byte ^ 255 for byte in content),
        }
        path.write_bytes(changed[damage])
    source = Source()
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(load([tmp_path], source), ARRAY)
    assert source.count >= 1
    assert ("built again" in caplog.text) == ((name, damage) != ("item.json", "missing"))
    if damage != "folder":  # which cannot be replaced by a file
        np.testing.assert_array_equal(load([tmp_path], source), ARRAY)
        assert source.count == 1


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    load([tmp_path], Source())
    origin = json.loads((tmp_path / "item.json").read_bytes())["origin"]
    for name in ("item.npy", "item.json"):
        content = (tmp_path / name).read_bytes()
        for place in range(len(content)):
            broken = bytearray(content)
            broken[place] ^= 1 << (place % 8)
            (tmp_path / name).write_bytes(broken)
            found = array_cache._read(tmp_path, "item", origin, ARRAY.dtype, ARRAY.shape)
            if found is not None:
                assert name == "item.json"  # whose white space may change
                np.testing.assert_array_equal(found, ARRAY)
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("change", ["origin", "dtype", "shape"])
def test_a_stale_array_is_replaced(tmp_path, caplog, change):
    load([tmp_path], Source())
    array = {"dtype": ARRAY.astype(np.float32), "shape": ARRAY.reshape(6, 2, 2)}.get(change, ARRAY)
    origin = ORIGIN | ({"set": "other"} if change == "origin" else {})
    source = Source(array + 1)
    for _ in range(2):
        found = load([tmp_path], source, origin, array=array)
        np.testing.assert_array_equal(found, array + 1)
    assert source.count == 1
    assert "stale" in caplog.text


def test_an_array_in_use_outlives_its_replacement(tmp_path):
    old = load([tmp_path], Source())
    new = load([tmp_path], Source(ARRAY + 1), {"set": "other"})
    np.testing.assert_array_equal(old, ARRAY)
    np.testing.assert_array_equal(new, ARRAY + 1)


def blocked(tmp_path: Path) -> Path:
    """A folder that nobody can make, not even root: its parent is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


def test_what_cannot_be_written_is_passed_over(tmp_path, caplog):
    source = Source()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = load([blocked(tmp_path), tmp_path / "second"], source)
            np.testing.assert_array_equal(found, ARRAY)
    assert source.count == 1
    assert (tmp_path / "second" / "item.npy").exists()
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_without_a_writable_folder_there_is_no_cache(tmp_path):
    found = load([blocked(tmp_path)], Source())
    np.testing.assert_array_equal(found, ARRAY)
    assert not found.flags.writeable


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    class Full(array_cache._ChecksumWriter):
        def write(self, data):
            if self.crc32:  # something was written
                raise OSError(28, "No space left on device")
            super().write(data)

    monkeypatch.setattr(array_cache, "_ChecksumWriter", Full)
    np.testing.assert_array_equal(load([tmp_path], Source()), ARRAY)
    assert not [*tmp_path.iterdir()]


def test_an_error_while_computing_leaves_nothing_behind(tmp_path):
    def chunks():
        yield ARRAY[:4]
        raise KeyError("broken")

    with pytest.raises(KeyError):
        cached_array([tmp_path], "item", ORIGIN, dtype="int32", shape=(6, 4), chunks=chunks)
    assert not [*tmp_path.iterdir()]


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path):
    old, new = tmp_path / ".item.npy.old", tmp_path / ".item.npy.new"
    for path, age in ((old, 4000), (new, 3000)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    load([tmp_path], Source())
    assert (old.exists(), new.exists()) == (False, True)


# Two at once


@pytest.mark.parametrize("other", [ORIGIN, {"set": "other"}])
def test_another_process_may_build_meanwhile(tmp_path, other):
    def chunks():
        yield ARRAY[:4]
        np.testing.assert_array_equal(load([tmp_path], Source(), other), ARRAY)
        yield ARRAY[4:]

    found = cached_array([tmp_path], "item", ORIGIN, dtype="int32", shape=(6, 4), chunks=chunks)
    np.testing.assert_array_equal(found, ARRAY)
    source = Source()
    np.testing.assert_array_equal(load([tmp_path], source), ARRAY)
    assert source.count == 0


def test_threads_that_want_different_arrays_in_one_place_all_get_theirs(tmp_path):
    barrier, wrong = threading.Barrier(6), []

    def work(number):
        mine = ARRAY + number % 3
        barrier.wait()
        for _ in range(20):
            found = load([tmp_path], Source(mine), {"set": str(number % 3)})
            if not np.array_equal(found, mine):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(path.name for path in tmp_path.iterdir()) == ["item.json", "item.npy"]


# In a data set


def load_cells(root: Path, **options):
    datasets._load.cache_clear()
    return load_dataset("tiny_cells", data_dir=root, **options)


def test_decoded_images_are_kept_beside_the_prepared_set(copy_of, monkeypatch):
    root, _ = copy_of("tiny_cells")
    first = load_cells(root, val_examples=9)
    cache = root / ".edl_jax" / "tiny_cells-1.0.0"
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        f"{split}_{item}.{kind}"
        for split in ("train", "test")
        for item in ("images", "label")
        for kind in ("npy", "json")
    )

    def decode(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr("edl_jax.training.tfds_source.decode_image", decode)
    again = load_cells(root, val_examples=9)
    for name in ("train_images", "val_images", "test_images", "train_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    with pytest.raises(DataError, match="decoded again"):
        load_cells(root, image_size=5)


def test_each_size_has_a_cache_of_its_own(copy_of):
    root, _ = copy_of("tiny_cells")
    load_cells(root)
    load_cells(root, image_size=5)
    caches = sorted(path.name for path in (root / ".edl_jax").iterdir())
    assert caches == ["tiny_cells-1.0.0", "tiny_cells-1.0.0-5"]


@pytest.mark.parametrize(
    "name", ["train_images.npy", "train_images.json", "test_label.npy", "test_label.json"]
)
def test_a_damaged_cache_is_mended_from_the_records(copy_of, name):
    root, _ = copy_of("tiny_cells")
    first = load_cells(root)
    path = root / ".edl_jax" / "tiny_cells-1.0.0" / name
    whole = path.read_bytes()
    path.unlink()  # else the arrays that are mapped would change too
    path.write_bytes(whole[:-20])
    again = load_cells(root)
    np.testing.assert_array_equal(again.train_images, first.train_images)
    np.testing.assert_array_equal(again.test_labels, first.test_labels)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["touched records", "another Pillow", "another split"])
def test_a_cache_of_something_else_is_stale(copy_of, monkeypatch, change):
    root, folder = copy_of("tiny_cells")
    load_cells(root)
    described = root / ".edl_jax" / "tiny_cells-1.0.0" / "test_images.json"
    before = json.loads(described.read_bytes())
    if change == "touched records":
        for path in folder.glob("*test*"):
            path.touch()
    elif change == "another Pillow":
        monkeypatch.setattr("PIL.__version__", "0.0")
    else:
        train = described.with_name("train_images.npy")
        shutil.copy(train, described.with_suffix(".npy"))
        shutil.copy(train.with_suffix(".json"), described)
    data = load_cells(root)
    assert sorted(data.test_images[:, 0, 0, 0]) == [*range(len(data.test_images))]
    after = json.loads(described.read_bytes())
    assert (after["origin"] == before["origin"]) == (change == "another split")


def test_read_only_data_is_cached_in_the_users_folder(copy_of, tmp_path):
    root, _ = copy_of("tiny_cells")
    (root / ".edl_jax").write_text("")  # stands for a folder that cannot be written
    first = load_cells(root)
    (cache,) = (tmp_path / "home cache" / "edl_jax").iterdir()
    assert cache.name.startswith("tiny_cells-1.0.0-")
    np.testing.assert_array_equal(load_cells(root).train_images, first.train_images)
    other = tmp_path / "elsewhere"
    shutil.copytree(root, other)
    load_cells(other)
    assert len([*(tmp_path / "home cache" / "edl_jax").iterdir()]) == 2


def test_nothing_writable_does_without_a_cache(copy_of, tmp_path, monkeypatch):
    root, _ = copy_of("tiny_cells")
    expected = load_cells(root)
    shutil.rmtree(root / ".edl_jax")
    (root / ".edl_jax").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked(tmp_path)))
    np.testing.assert_array_equal(load_cells(root).train_images, expected.train_images)


def test_the_users_folder_follows_the_environment(monkeypatch, tmp_path):
    assert array_cache.user_cache() == tmp_path / "home cache" / "edl_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert array_cache.user_cache() == tmp_path / ".cache" / "edl_jax"
