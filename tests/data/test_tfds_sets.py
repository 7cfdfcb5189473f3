import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edl_jax.data import datasets, tfds_source
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.data.sources import fit_square
from edl_jax.errors import ConfigError, DataError

pytest.importorskip("tensorflow_datasets")
from tests.data import tiny


def test_a_set_is_what_its_builder_says(prepared):
    data = load_dataset(DataConfig("tiny_cells", data_dir=prepared))
    assert data.name == "tiny_cells"
    assert data.source == f"tiny_cells prepared in {prepared}/tiny_cells/1.0.0"
    assert (data.num_classes, data.class_names) == (3, tiny.SHAPES)
    assert (data.crop_padding, data.flip, data.streamed) == (1, True, False)
    for split, n in (("train", tiny.NUM_CELLS), ("test", tiny.NUM_TEST_CELLS)):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert images.shape == (n, 10, 12, 1)
        assert sorted(images[:, 0, 0, 0]) == [*range(n)]
        assert images[:, 0, 0, 0].tolist() != [*range(n)]  # TFDS shuffles
        for image, label in zip(images, labels, strict=True):
            np.testing.assert_array_equal(image[..., 0], tiny.cell(split, image[0, 0, 0]))
            assert label == image[0, 1, 0]
    assert data.val_images.shape == (0, 10, 12, 1)
    np.testing.assert_array_equal(data.class_counts, [30, 30, 30])
    assert data.class_counts.dtype == np.int64


@pytest.mark.parametrize("mirrored", [False, True])
def test_only_characters_are_not_mirrored(prepared, monkeypatch, mirrored):
    assert {"mnist", "emnist"} < tfds_source._NOT_MIRRORED
    assert "fashion_mnist" not in tfds_source._NOT_MIRRORED
    characters = {"tiny_words" if mirrored else "tiny_photos"}
    monkeypatch.setattr(tfds_source, "_NOT_MIRRORED", characters)
    config = DataConfig("tiny_photos/plain", data_dir=prepared, image_size=8)
    assert load_dataset(config).flip == mirrored


def test_the_order_is_that_of_tfds_across_shards(prepared):
    import tensorflow_datasets as tfds

    direct = tfds.data_source("tiny_cells", data_dir=str(prepared), split="train")
    data = load_dataset(DataConfig("tiny_cells", data_dir=prepared))
    np.testing.assert_array_equal(data.train_images, [example["image"] for example in direct])


def test_an_unprepared_set_is_prepared_by_its_own_builder_without_tensorflow(tmp_path):
    data = load_dataset(DataConfig("tiny_cells", data_dir=tmp_path))
    assert data.source == f"tiny_cells prepared in {tmp_path}/tiny_cells/1.0.0"
    assert len(data.train_images) == tiny.NUM_CELLS
    assert [*tmp_path.glob("tiny_cells/1.0.0/*-train.array_record*")]
    assert "tensorflow" not in sys.modules


def test_a_builder_that_needs_tensorflow_is_said_to(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(DataError, match=r"TensorFlow is, by tfds\.builder\('tiny_arr"):
        load_dataset(DataConfig("tiny_arrays", data_dir=tmp_path))
    assert not [*tmp_path.rglob("dataset_info.json")]


@pytest.mark.slow
def test_prepared_sets_need_neither_their_builder_nor_tensorflow(prepared, tmp_path):
    """With a tensorflow that could be imported, so that the test means something."""
    (tmp_path / "tensorflow.py").write_text("")
    code = (
        "import sys; from edl_jax.data.config import DataConfig\n"
        "from edl_jax.data.datasets import load_dataset\n"
        "assert not {'tensorflow_datasets', 'sklearn', 'grain', 'PIL'} & set(sys.modules)\n"
        "config = DataConfig('tiny_cells', data_dir=sys.argv[1], train_examples=5)\n"
        "data = load_dataset(config)\n"
        "assert data.class_names == ('square', 'circle', 'cross')\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules"
    )
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, str(prepared)], check=True, env=environment)


@pytest.mark.parametrize("stream", [False, True])
def test_a_set_that_is_prepared_anew_is_other_data(copy_of, stream):
    root, folder = copy_of("tiny_cells")

    def load():
        return load_dataset(DataConfig("tiny_cells", data_dir=root, stream=stream))

    first = load()
    assert load() is first
    images = first.test_images[:30]
    other = root.parent / "other"
    shutil.copytree(root, other)
    assert (
        load_dataset(DataConfig("tiny_cells", data_dir=other, stream=stream)).digest == first.digest
    )
    # As if its builder now gave for the test split what it gave for the train split.
    for path in folder.glob("tiny_cells-test.array_record*"):
        path.write_bytes(Path(str(path).replace("-test.", "-train.")).read_bytes())
    info = folder / "dataset_info.json"
    os.utime(info, ns=(0, info.stat().st_mtime_ns + 1))
    second = load()
    assert second.digest != first.digest
    assert not np.array_equal(second.test_images[:30], images)


def test_the_directory_may_be_given_by_the_home_folder(copy_of, monkeypatch, tmp_path):
    copy_of("tiny_cells")
    monkeypatch.setenv("HOME", str(tmp_path))
    first = load_dataset(DataConfig("tiny_cells", data_dir="~/copy"))
    monkeypatch.setenv("TFDS_DATA_DIR", "~/copy")
    assert load_dataset(DataConfig("tiny_cells")) is first
    assert first.source == f"tiny_cells prepared in {tmp_path / 'copy'}/tiny_cells/1.0.0"
    for path in ("", "gs://bucket"):
        with pytest.raises(ConfigError, match=f"the path is '{path}'"):
            load_dataset(DataConfig("tiny_cells", data_dir=path))


# Sizes


def test_images_of_different_sizes_are_cut_to_squares(prepared):
    data = load_dataset(DataConfig("tiny_photos/plain", data_dir=prepared, image_size=16))
    assert data.name == "tiny_photos/plain"
    assert data.train_images.shape == (12, 16, 16, 3)
    assert (data.num_classes, data.class_names, data.crop_padding) == (4, ("0", "1", "2", "3"), 2)
    for image, label in zip(data.train_images[:], data.train_labels, strict=True):
        index = int(image[0, 0, 0])
        assert label == index % 4
        # The middle square's left half is half of the photo's left half.
        np.testing.assert_array_equal(image[:, :7], index)
        np.testing.assert_array_equal(image[:, 9:], 0)


def test_the_default_configuration_is_found(prepared):
    data = load_dataset(DataConfig("tiny_photos", data_dir=prepared, image_size=8))
    assert data.name == "tiny_photos/plain"


def test_validation_is_the_test_split_where_test_labels_are_secret(prepared):
    data = load_dataset(DataConfig("tiny_photos/plain", data_dir=prepared, image_size=8))
    assert len(data.test_labels) == 8


@pytest.mark.parametrize("name", ["tiny_cells", "digits"])
def test_images_of_one_size_can_be_resized(prepared, name):
    data = load_dataset(DataConfig(name, data_dir=prepared, image_size=32))
    assert data.train_images.shape[1:] == (32, 32, 1)
    assert data.crop_padding == 4
    own = load_dataset(DataConfig(name, data_dir=prepared))
    assert own.train_images.shape[1:] == ((10, 12, 1) if name == "tiny_cells" else (8, 8, 1))


def test_fit_square_averages_what_it_makes_smaller():
    stripes = np.zeros((64, 96, 1), np.uint8)
    stripes[:, ::2] = 200
    small = fit_square(stripes, 8)
    np.testing.assert_allclose(small.astype(float), 100, atol=8)


def test_images_of_no_fixed_size_need_one(prepared):
    with pytest.raises(ConfigError, match=r"tiny_photos has images of no fixed size.*image"):
        load_dataset(DataConfig("tiny_photos/plain", data_dir=prepared))


@pytest.mark.parametrize("size", [0, 2.5])
def test_image_size_that_cannot_be_is_refused(prepared, size):
    with pytest.raises(ConfigError, match="image_size is"):
        load_dataset(DataConfig("tiny_cells", data_dir=prepared, image_size=size))


# Refusals


def test_sets_without_images_are_refused_with_what_they_have(prepared):
    with pytest.raises(ConfigError, match=r"(?s)are .*'text': Text.*expected an Image"):
        load_dataset(DataConfig("tiny_words", data_dir=prepared))


@pytest.mark.parametrize("name", ["tiny_words", "tiny_photos/plain"])
def test_what_will_be_refused_is_not_prepared_first(tmp_path, name):
    with pytest.raises(ConfigError, match=r"no set of labeled images|no fixed size"):
        load_dataset(DataConfig(name, data_dir=tmp_path / "fresh"))
    assert not (tmp_path / "fresh").exists()


def test_sets_without_a_test_split_are_refused(prepared):
    with pytest.raises(ConfigError, match="has the splits train; expected train, and test or val"):
        load_dataset(DataConfig("tiny_train", data_dir=prepared))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("cifra10", "Expected NAME, NAME/CONFIG or NAME/CONFIG:VERSION of TFDS, digits, .* auto"),
        ("imagenette/999px", "999px not found"),
        ("mnist:9.9.9", "cannot be loaded at version 9.9.9, only"),
        ("cifar10/data=1", "unexpected keyword argument 'data'"),
    ],
)
def test_wrong_names_are_refused(prepared, name, advice):
    with pytest.raises(ConfigError, match=rf"(?s)data set '{name}'.*{advice}"):
        load_dataset(DataConfig(name, data_dir=prepared))


# Damage


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "flipped"])
@pytest.mark.parametrize("examples", [1, None])
def test_damaged_records_are_an_error_that_names_the_folder(copy_of, damage, examples):
    root, folder = copy_of("tiny_cells")
    for path in folder.glob("tiny_cells-test.array_record*"):
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "flipped":
            path.write_bytes(bytes(byte ^ 255 for byte in content))
        else:
            path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    with pytest.raises(DataError, match=r"test split of tiny_cells in .*copy.*delete the folder"):
        load_dataset(
            DataConfig("tiny_cells", data_dir=root, train_examples=1, test_examples=examples)
        )


def test_a_damaged_description_is_an_error(copy_of):
    root, folder = copy_of("tiny_cells")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot open tiny_cells in .*copy.*delete the folder"):
        load_dataset(DataConfig("tiny_cells", data_dir=root))


def test_labels_out_of_range_are_an_error(copy_of):
    root, folder = copy_of("tiny_cells")
    path = folder / "features.json"
    path.write_text(path.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    (folder / "label.labels.txt").write_text("square\ncircle\n")
    with pytest.raises(DataError, match=r"train labels out of range 0\.\.1 in tiny_cells"):
        load_dataset(DataConfig("tiny_cells", data_dir=root))


# Parts


def test_validation_is_drawn_by_seed_and_the_rest_keeps_its_order(prepared):
    whole = load_dataset(DataConfig("tiny_cells", data_dir=prepared)).train_images
    data = load_dataset(
        DataConfig("tiny_cells", data_dir=prepared, val_examples=20, train_examples=40)
    )
    other = load_dataset(DataConfig("tiny_cells", data_dir=prepared, val_examples=20, split_seed=1))

    def order(images):
        return [whole[:, 0, 0, 0].tolist().index(index) for index in images[:, 0, 0, 0]]

    val, train = order(data.val_images), order(data.train_images)
    assert val == sorted(val)
    assert val != [*range(70, 90)]
    assert train == [row for row in range(90) if row not in val][:40]
    assert order(other.val_images) != val
    assert sorted(order(other.val_images) + order(other.train_images)) == [*range(90)]
    datasets._load.cache_clear()
    again = load_dataset(DataConfig("tiny_cells", data_dir=prepared, val_examples=20))
    np.testing.assert_array_equal(again.val_images, data.val_images)


def test_few_images_are_the_first_of_many_and_are_not_cached(copy_of, tmp_path):
    root, _ = copy_of("tiny_cells")
    few = load_dataset(DataConfig("tiny_cells", data_dir=root, train_examples=8, test_examples=2))
    assert not (tmp_path / "home cache").exists()
    many = load_dataset(DataConfig("tiny_cells", data_dir=root))
    assert (tmp_path / "home cache").exists()
    np.testing.assert_array_equal(few.train_images, many.train_images[:8])
    np.testing.assert_array_equal(few.train_labels, many.train_labels[:8])
    np.testing.assert_array_equal(few.test_images, many.test_images[:2])
    np.testing.assert_array_equal(few.test_labels, many.test_labels[:2])


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ({"train_examples": 80, "val_examples": 11}, "is 80, val_examples 11 .*has 90 for train"),
        ({"test_examples": 31}, "test_examples 31; .*and 30 for test"),
        ({"val_examples": 90}, "val_examples 90 .*has 90"),
        ({"val_examples": -1}, "val_examples is -1"),
        ({"train_examples": 0}, "train_examples is 0"),
        ({"test_examples": 0}, "test_examples is 0"),
        ({"name": ""}, "name is ''; expected a string, not empty"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"split_seed": 2**32}, "split_seed is 4294967296"),
    ],
)
def test_more_examples_than_there_are_is_refused(prepared, counts, named):
    with pytest.raises(ConfigError, match=named):
        load_dataset(DataConfig(**{"name": "tiny_cells", "data_dir": prepared, **counts}))
