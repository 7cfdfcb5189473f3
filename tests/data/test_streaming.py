import importlib.util
import sys
import threading
import time

import jax
import numpy as np
import pytest

from edl_jax.data import datasets
from edl_jax.data.arrays import LazyArray, stream_batches
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import fits_device, load_dataset
from edl_jax.errors import DataError

needs_grain = pytest.mark.skipif(
    importlib.util.find_spec("grain") is None, reason="grain is not installed"
)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 50)


def ahead_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def wait_until_threads_end():
    """Grain tells its threads to end and does not wait for them."""
    for _ in range(500):
        if not ahead_threads():
            return
        time.sleep(0.01)
    raise AssertionError(f"still running: {ahead_threads()}")


class Slow:
    """Images that remember which were asked for, and fail at one of them."""

    shape = IMAGES.shape

    def __init__(self, broken=None):
        self.broken, self.asked = broken, []

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, indices):
        self.asked.append([*indices])
        time.sleep(0.002)
        if self.broken in indices:
            raise DataError("cannot read")
        return IMAGES[indices]


# Batches


@needs_grain
@pytest.mark.parametrize("steps", [0, 1, 23])
def test_batches_are_the_examples_asked_for_in_that_order(steps):
    indices = RNG.integers(0, 50, (steps, 5))
    found = [*stream_batches(IMAGES, LABELS, indices)]
    assert len(found) == steps
    for (images, labels), chosen in zip(found, indices, strict=True):
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, IMAGES[chosen])
        np.testing.assert_array_equal(labels, LABELS[chosen])
    wait_until_threads_end()


@needs_grain
def test_streamed_sets_give_what_sets_in_memory_give(prepared):
    memory = load_dataset(DataConfig("tiny_cells", data_dir=prepared, val_examples=20))
    streamed = load_dataset(
        DataConfig("tiny_cells", data_dir=prepared, val_examples=20, stream=True)
    )
    indices = np.random.default_rng(1).permutation(70).reshape(14, 5)
    both = zip(
        stream_batches(memory.train_images, memory.train_labels, indices),
        stream_batches(streamed.train_images, streamed.train_labels, indices),
        strict=True,
    )
    for (images, labels), (streamed_images, streamed_labels) in both:
        np.testing.assert_array_equal(streamed_images, images)
        np.testing.assert_array_equal(streamed_labels, labels)


@needs_grain
@pytest.mark.parametrize("how", ["close", "drop", "exhaust"])
def test_threads_end_when_the_consumer_stops(how):
    source = Slow()
    batches = stream_batches(source, LABELS, np.arange(50)[:, None])
    if how == "exhaust":
        for _ in batches:
            pass
    else:
        next(batches)
        assert ahead_threads()
    if how == "close":
        batches.close()
    del batches
    wait_until_threads_end()
    if how != "exhaust":
        asked = len(source.asked)
        assert asked < 50
        time.sleep(0.02)
        assert len(source.asked) == asked


@needs_grain
def test_reading_is_ahead_of_the_consumer():
    source = Slow()
    batches = stream_batches(source, LABELS, np.arange(40)[:, None])
    next(batches)
    for _ in range(500):
        if len(source.asked) > 1:
            break
        time.sleep(0.01)
    assert len(source.asked) > 1
    batches.close()


@needs_grain
def test_an_error_while_reading_reaches_the_consumer():
    batches = stream_batches(Slow(broken=7), LABELS, np.arange(50)[:, None])
    for number in range(7):
        np.testing.assert_array_equal(next(batches)[0], IMAGES[[number]])
    with pytest.raises(DataError, match="cannot read"):
        next(batches)
    wait_until_threads_end()


@needs_grain
def test_damaged_records_reach_the_consumer_as_a_data_error(copy_of):
    root, folder = copy_of("tiny_cells")
    data = load_dataset(DataConfig("tiny_cells", data_dir=root, stream=True))
    data.train_images[[0]]
    datasets._load.cache_clear()
    for path in folder.glob("*-train.*"):
        path.write_bytes(bytes(len(path.read_bytes())))
    broken = datasets.open_tfds("tiny_cells", str(root), None).arrays["train"][0]
    with pytest.raises(DataError, match="cannot read the train split of tiny_cells"):
        [*stream_batches(broken, data.train_labels, np.arange(90).reshape(9, 10))]
    wait_until_threads_end()


def test_without_grain_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(DataError, match=r'grain.*pip install "edl_jax\[data\]"'):
        next(stream_batches(IMAGES, LABELS, np.zeros((1, 1), int)))


# Memory


class Device:
    def __init__(self, stats):
        self.memory_stats = lambda: stats


@pytest.mark.parametrize(("num_bytes", "fits"), [(250, True), (251, False)])
def test_images_may_fill_a_quarter_of_the_devices_memory(monkeypatch, num_bytes, fits):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device({"bytes_limit": 1000})])
    assert fits_device(num_bytes) == fits


@pytest.mark.parametrize("stats", [None, {}])
def test_without_a_limit_the_machines_memory_counts(monkeypatch, stats):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(stats)])
    assert fits_device(2**20)
    assert not fits_device(2**50)


@pytest.mark.parametrize("size", [81_919, 81_920])
def test_sets_that_do_not_fit_are_streamed(monkeypatch, size):
    """1,280 images of 8x8 bytes."""
    monkeypatch.setattr(datasets, "fits_device", lambda num_bytes: num_bytes <= size)
    data = load_dataset(DataConfig("digits", train_examples=1280))
    assert data.streamed == (size < 81_920)
    for part in ("train", "val", "test"):
        images = getattr(data, f"{part}_images")
        assert isinstance(images, LazyArray) == data.streamed
    assert isinstance(data.train_labels, np.ndarray)
    assert not load_dataset(DataConfig("digits", train_examples=1280, stream=False)).streamed
