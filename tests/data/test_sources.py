import gc
import weakref
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax.data import datasets
from edl_jax.data.augmentation import normalize
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.data.sources import DATASETS, ArraySource
from edl_jax.data.tfds_source import advice
from edl_jax.errors import ConfigError, DataError
from tests.data.conftest import same_images


def test_digits_are_split_shuffled_and_scaled():
    from sklearn.datasets import load_digits

    data = load_dataset(DataConfig("digits", val_examples=100))
    assert data.source == "scikit-learn's handwritten digits"
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 1, False)
    assert data.class_names == tuple("0123456789")
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
        assert np.bincount(part).min() > 0.03 * len(part)
    assert np.any(images != expected)


def test_digits_subsets_are_nested_and_repeatable():
    large = load_dataset(DataConfig("digits", val_examples=37))
    datasets._load.cache_clear()
    small = load_dataset(DataConfig("digits", train_examples=20, val_examples=37, test_examples=10))
    assert small is not large
    np.testing.assert_array_equal(small.train_images, large.train_images[:20])
    np.testing.assert_array_equal(small.val_labels, large.val_labels)
    np.testing.assert_array_equal(small.test_images, large.test_images[:10])


def test_auto_without_cifar10_is_digits_and_says_why(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    data = load_dataset(DataConfig("auto"))
    assert data.name == "digits"
    folder = tmp_path / "empty"
    reason = f"cifar10 is not prepared in {folder} and could not be downloaded"
    assert data.source.startswith(f"scikit-learn's handwritten digits ({reason}")


def test_mean_and_std_are_those_of_the_train_images():
    data = load_dataset(DataConfig("digits", train_examples=50))
    assert data.mean.dtype == data.std.dtype == np.float32
    pixels = data.train_images[:].reshape(-1, 1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_mean_and_std_of_many_images_are_those_of_evenly_spaced_ones(monkeypatch, stream):
    monkeypatch.setattr(datasets, "_STATISTICS_IMAGES", 300)  # more than one chunk
    data = load_dataset(DataConfig("digits", train_examples=900, stream=stream))
    pixels = data.train_images[::3].reshape(-1, 1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(axis=0), rtol=1e-6)


def test_loaded_once_and_read_only():
    data = load_dataset(DataConfig("digits"))
    assert load_dataset(DataConfig("digits")) is data
    arrays = [data.train_images, data.train_labels, data.val_images, data.test_images, data.mean]
    for array in arrays:
        assert isinstance(array, np.ndarray)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_labels_out_of_range_are_an_error(monkeypatch):
    from sklearn import datasets as sklearn_datasets

    loaded: dict = sklearn_datasets.load_digits()  # type: ignore[assignment]
    loaded["target"] = loaded["target"] + 1
    monkeypatch.setattr(sklearn_datasets, "load_digits", lambda: loaded)
    with pytest.raises(DataError, match=r"labels out of range 0\.\.9"):
        load_dataset(DataConfig("digits"))


def test_asymmetric_noise_is_refused_where_no_classes_are_alike():
    with pytest.raises(ConfigError, match=r"'asymmetric'.*CIFAR-10; expected 'symmetric'"):
        load_dataset(DataConfig("digits", label_noise="asymmetric", noise_rate=0.1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"label_noise": "some"}, "label_noise is 'some'.*none, symmetric, asymmetric"),
        ({"label_noise": "symmetric", "noise_rate": 1.1}, "noise_rate is 1.1"),
        ({"noise_rate": 0.1}, "noise_rate is 0.1 without noise"),
        ({"imbalance": "linear"}, "imbalance is 'linear'.*none, exponential, step"),
        ({"imbalance_factor": 10}, "imbalance_factor is 10.0 without imbalance; expected 100, or"),
        ({"imbalance": "step", "imbalance_factor": 0.5}, "imbalance_factor is 0.5"),
        ({"imbalance": "step", "imbalance_factor": 500.0}, "factor is 500.0 where.* has 1.. train"),
        ({"noise_seed": -1}, "seed is -1"),
        ({"noise_seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_label_noise_that_cannot_be_is_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        load_dataset(DataConfig("digits", **options))


# Images of one's own


def colours(**changes: Any) -> ArraySource:
    """Twelve images of 6 by 4, each of one colour, in two classes."""
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 4, 3), np.uint8)
    labels = np.arange(12) % 2
    arrays = {"train": (images[:9], labels[:9]), "test": (images[9:], labels[9:])}
    values: dict[str, Any] = {
        "name": "colours",
        "description": "colours of our own",
        "class_names": ("even", "odd"),
        "arrays": arrays,
    }
    return ArraySource(**{**values, **changes})


@pytest.fixture
def registered():
    with mock.patch.dict(DATASETS):
        DATASETS.register("colours")(colours)
        yield
    datasets._load.cache_clear()


def changed(**changes: Any) -> ArraySource:
    """The colours with a part of them replaced."""
    images, labels = colours().arrays["train"]
    pairs = {"images": (images + 1, labels), "labels": (images, 1 - labels)}
    for what, pair in pairs.items():
        if changes.pop(what, False):
            changes["arrays"] = {**colours().arrays, "train": pair}
        elif changes.pop(f"test_{what}", False):
            changes["arrays"] = {**colours().arrays, "test": pair}
    return colours(**changes)


CHANGES: list[dict[str, Any]] = [
    {"images": True},
    {"labels": True},
    {"test_images": True},
    {"test_labels": True},
    {"class_names": ("a", "b")},
    {"class_names": ("even", "odd", "none")},
    {"flip": False},
]


@pytest.mark.parametrize("stream", [False, True])
def test_a_digest_tells_data_of_one_name_apart_and_a_registration_can_be_replaced(
    registered, stream
):
    first = load_dataset(DataConfig("colours", stream=stream))
    found = [first.digest]
    for changes in CHANGES:
        DATASETS.register("colours")(lambda changes=changes: changed(**dict(changes)))
        found.append(load_dataset(DataConfig("colours", stream=stream)).digest)
    assert len(set(found)) == len(found)
    others: list[dict[str, Any]] = [
        {"train_examples": 8},
        {"val_examples": 1},
        {"val_examples": 1, "split_seed": 3},
        {"test_examples": 1},
        {"label_noise": "symmetric", "noise_rate": 0.5},
        {"image_size": 8},
    ]
    DATASETS.register("colours")(lambda: colours(description="told otherwise"))
    again = load_dataset(DataConfig("colours", stream=stream))
    assert again.source == "told otherwise"
    assert again.digest == first.digest
    assert again.identity == {"name": "colours", "digest": first.digest}
    found += [
        load_dataset(DataConfig("colours", stream=stream, **options)).digest for options in others
    ]
    assert len(set(found)) == len(found)


def test_arrays_that_change_in_place_are_other_data(registered):
    source = colours(arrays={k: (x.copy(), y.copy()) for k, (x, y) in colours().arrays.items()})
    DATASETS.register("colours")(lambda: source)
    first = load_dataset(DataConfig("colours"))
    assert load_dataset(DataConfig("colours")) is first
    source.arrays["train"][1][:] = 1 - source.arrays["train"][1]
    second = load_dataset(DataConfig("colours"))
    np.testing.assert_array_equal(second.train_labels, 1 - first.train_labels)
    assert second.digest != first.digest


def test_data_sets_that_are_no_longer_used_are_let_go():
    options: dict[str, Any] = {"val_examples": 9, "train_examples": 9}
    alive = [
        weakref.ref(load_dataset(DataConfig("digits", split_seed=s, **options))) for s in range(5)
    ]
    gc.collect()
    assert sum(found() is not None for found in alive) <= 2


@pytest.mark.parametrize("kind", ["memmap", "subclass", "jax"])
def test_other_arrays_than_plain_ones_are_taken(tmp_path, kind):
    images, labels = colours().arrays["train"]
    np.save(tmp_path / "images.npy", images)
    given: Any = {
        "memmap": lambda: np.load(tmp_path / "images.npy", mmap_mode="r"),
        "subclass": lambda: images.view(type("Own", (np.ndarray,), {})),
        "jax": lambda: jnp.asarray(images),
    }[kind]()
    assert type(given) is not np.ndarray
    source = colours(arrays={"train": (given, jnp.asarray(labels)), "test": (given, labels)})
    found = source.arrays["train"][0]
    assert type(found) is np.ndarray
    assert kind == "jax" or np.shares_memory(found, given)  # not copied
    np.testing.assert_array_equal(source.arrays["train"][0], images)
    plain = colours(arrays=dict.fromkeys(("train", "test"), (images, labels)))
    assert source.digest == plain.digest


def test_images_of_ones_own_are_found_by_name(registered):
    data = load_dataset(
        DataConfig("colours", val_examples=2, label_noise="symmetric", noise_rate=0.5)
    )
    assert (data.name, data.source) == ("colours", "colours of our own")
    assert (data.class_names, data.flip, data.crop_padding) == (("even", "odd"), True, 1)
    assert data.test_images[:, 0, 0, 0].tolist() == [9, 10, 11]
    assert data.test_labels.tolist() == [1, 0, 1]
    assert len(data.train_images) == 7
    assert len(data.val_images) == 2
    true = data.train_images[:, 0, 0, 0] % 2
    assert 0 < (data.train_labels != true).sum() < 7
    assert (data.val_labels == data.val_images[:, 0, 0, 0] % 2).all()
    assert data.train_labels.dtype == np.int32


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_ones_own_are_resized(registered, channels):
    images, labels = colours().arrays["train"]
    arrays = {"train": (images[..., :channels], labels), "test": (images[..., :channels], labels)}
    resized = colours(arrays=arrays).resized(8)
    assert resized.image_shape == (8, 8, channels)
    rows = np.array([3, 5])
    assert (resized.arrays["test"][0][rows] == rows[:, None, None, None]).all()
    assert resized.arrays["test"][1][rows].tolist() == [1, 1]
    assert load_dataset(DataConfig("colours", image_size=8)).train_images.shape == (9, 8, 8, 3)


IMAGES, LABELS = colours().arrays["train"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arrays": {"train": (IMAGES, LABELS)}}, r"has the arrays train: \(.*; expected .*'test'"),
        ({"arrays": None}, "has the arrays NoneType; expected .'train': "),
        ({"arrays": (IMAGES, LABELS, IMAGES, LABELS)}, r"has the arrays \(uint8.*expected .'train"),
        ({"train": None}, r"'colours' has the arrays train: NoneType, test: \(.*; expected"),
        ({"test": (IMAGES[:, :0], LABELS), "train": (IMAGES[:, :0], LABELS)}, r"uint8\[9, 0, 4, 3"),
        ({"class_names": 2}, "has the classes 2; expected a tuple of 2 or more names"),
        ({"class_names": {"red", "blue"}}, "has the classes {'.*'}; expected a tuple"),
        ({"class_names": "ab"}, "has the classes 'ab'"),
        ({"class_names": ("one",)}, "has the classes.*one.*2 or more"),
        ({"test": (IMAGES / 255, LABELS)}, r"test: \(float64\[9, 6, 4, 3\]"),
        ({"train": (IMAGES.transpose(0, 3, 1, 2), LABELS)}, "of 1 or 3 channels"),
        ({"test": (IMAGES[:, :5], LABELS)}, r"test: \(uint8\[9, 5, 4, 3\].*alike"),
        ({"train": (IMAGES[..., 0], LABELS)}, r"train: \(uint8\[9, 6, 4\], .*; expected"),
        ({"train": (IMAGES, LABELS[:8])}, r"train: \(.*int64\[8\].*labels whole numbers, \[n\]"),
        ({"train": (IMAGES, LABELS / 2)}, r"train: \(.*float64.*labels whole numbers"),
        (
            {"arrays": {"test": colours().arrays["test"], "train": ([], LABELS)}},
            r"train: \(list, int64",
        ),
        ({"train": (IMAGES, LABELS, LABELS)}, r"train: \(uint8\S* \S* \S* \S* int64.*, int64.*\),"),
        ({"test": (np.zeros((), np.uint8), LABELS)}, r"test: \(uint8\[\], int64"),
        (
            {"test": (IMAGES, LABELS - 1)},
            r"test labels out of range 0\.\.1 in colours \(colours of our own\): -1\.",
        ),
        ({"test": (IMAGES, LABELS.tolist())}, r"\[9, 6, 4, 3\], list\); expected .*NumPy arrays"),
    ],
)
def test_images_of_ones_own_that_cannot_be_used_are_refused(changes, named):
    if "test" in changes or "train" in changes:
        changes = {"arrays": {**colours().arrays, **changes}}
    with pytest.raises(DataError, match=named):
        colours(**changes)


def test_what_makes_no_images_is_refused(registered):
    DATASETS.register("nothing")(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'nothing' is made as None; expected an ArraySource"):
        load_dataset(DataConfig("nothing"))


def test_a_channel_that_is_the_same_everywhere_is_no_division_by_zero(registered):
    images = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 4, 3), np.uint8)
    images[..., 1] = 201
    arrays = {part: (images, np.arange(9) % 2) for part in ("train", "test")}
    DATASETS.register("two_channels")(lambda: colours(name="two_channels", arrays=arrays))
    data = load_dataset(DataConfig("two_channels"))
    np.testing.assert_allclose(data.mean[1], 201 / 255, rtol=1e-6)
    assert data.std[1] == 1
    assert 0 < data.std[0] == data.std[2] < 1
    normal = normalize(jnp.asarray(data.train_images), data.mean, data.std)
    np.testing.assert_allclose(normal[..., 1], 0, atol=1e-6)


def test_only_damage_is_a_reason_to_delete_data():
    for error in (
        OSError("image file is truncated"),
        FileNotFoundError(2, "gone"),
        ValueError("?"),
    ):
        assert "delete the folder" in advice(error)
    for error in (PermissionError(13, "denied"), OSError(24, "too many files"), MemoryError()):
        assert "left as they are" in advice(error)
