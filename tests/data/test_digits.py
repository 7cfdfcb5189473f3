import numpy as np
import pytest

from edl_jax.errors import ConfigError, DataError
from edl_jax.training import datasets
from edl_jax.training.datasets import load_dataset
from tests.data.conftest import same_images


def test_digits_are_split_shuffled_and_scaled():
    from sklearn.datasets import load_digits

    data = load_dataset("digits", val_examples=100)
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
    large = load_dataset("digits", val_examples=37)
    datasets._load.cache_clear()
    small = load_dataset("digits", train_examples=20, val_examples=37, test_examples=10)
    assert small is not large
    np.testing.assert_array_equal(small.train_images, large.train_images[:20])
    np.testing.assert_array_equal(small.val_labels, large.val_labels)
    np.testing.assert_array_equal(small.test_images, large.test_images[:10])


def test_auto_without_cifar10_is_digits_and_says_why(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    data = load_dataset("auto")
    assert data.name == "digits"
    folder = tmp_path / "empty"
    reason = f"CIFAR-10 is not prepared in {folder} and could not be downloaded: "
    assert data.source.startswith(f"scikit-learn's handwritten digits ({reason}")


def test_mean_and_std_are_those_of_the_train_images():
    data = load_dataset("digits", train_examples=50)
    assert data.mean.dtype == data.std.dtype == np.float32
    pixels = data.train_images[:].reshape(-1, 1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_mean_and_std_of_many_images_are_those_of_evenly_spaced_ones(monkeypatch, stream):
    monkeypatch.setattr(datasets, "_STATISTICS_IMAGES", 300)  # more than one chunk
    data = load_dataset("digits", train_examples=900, stream=stream)
    pixels = data.train_images[::3].reshape(-1, 1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(axis=0), rtol=1e-6)


def test_loaded_once_and_read_only():
    data = load_dataset("digits")
    assert load_dataset("digits") is data
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
        load_dataset("digits")


def test_asymmetric_noise_is_refused_where_no_classes_are_alike():
    with pytest.raises(ConfigError, match=r"'asymmetric'.*CIFAR-10.*coarse_label.*'symmetric'"):
        load_dataset("digits", label_noise="asymmetric", noise_rate=0.1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"label_noise": "some"}, "label_noise is 'some'.*none, symmetric, asymmetric"),
        ({"label_noise": "symmetric", "noise_rate": 1.1}, "noise_rate is 1.1"),
        ({"noise_rate": 0.1}, "noise_rate is 0.1 without noise"),
        ({"imbalance": "linear"}, "imbalance is 'linear'.*none, exponential, step"),
        ({"imbalance": "step", "imbalance_factor": 0.5}, "imbalance_factor is 0.5"),
        ({"imbalance": "step", "imbalance_factor": 500.0}, "factor is 500.0 where.* has 1.. train"),
        ({"corruption_seed": -1}, "seed is -1"),
    ],
)
def test_corruption_that_cannot_be_is_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        load_dataset("digits", **options)


@pytest.mark.parametrize(
    ("name", "mirrored"), [("mnist", False), ("emnist/letters", False), ("fashion_mnist", True)]
)
def test_only_characters_are_not_mirrored(monkeypatch, name, mirrored):
    from edl_jax.training import sources

    class Named(sources.DigitsSource):
        pass

    digits = sources.open_digits(None)
    Named.name = name
    named = Named(digits.description, digits.all_images, digits.all_labels)
    monkeypatch.setattr(datasets, "open_tfds", lambda *args: named)
    assert load_dataset(name).flip == mirrored
