"""Miniature TFDS builders; importing this needs tensorflow_datasets."""

import abc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_LETTERS = tfds.features.ClassLabel(names=["a", "b"])
SHAPES = ("square", "circle", "cross")
NUM_CELLS, NUM_TEST_CELLS = 90, 30


def cell(split: str, index: int) -> np.ndarray:
    """The grey image `[10, 12]` of a cell, whose first pixel is its index and second its label."""
    image = np.random.default_rng([index, len(split)]).integers(0, 256, (10, 12), dtype=np.uint8)
    image[0, 0], image[0, 1] = index, index % 3
    return image


def photo(index: int) -> np.ndarray:
    """An RGB image of a size of its own, with the index in every pixel of its left half."""
    image = np.zeros((20 + index, 40 + 2 * index, 3), np.uint8)
    image[:, : 20 + index] = index
    return image


class _Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar[dict[str, Any]]
    SPLITS: ClassVar[dict[str, int]]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> Any:
        return {split: self._generate_examples(split, n) for split, n in self.SPLITS.items()}

    def _generate_examples(self, split: str, number: int) -> Any:
        for index in range(number):
            yield index, self.example(split, index)

    @abc.abstractmethod
    def example(self, split: str, index: int) -> dict[str, Any]:
        """One example."""


class TinyCells(_Tiny):
    """Grey images of 10x12 with three classes, and an image and a label of other names."""

    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(10, 12, 1)),
        "mask": tfds.features.Image(shape=(10, 12, 1)),
        "label": tfds.features.ClassLabel(names=SHAPES),
        "tissue": tfds.features.ClassLabel(num_classes=2),
    }
    SPLITS: ClassVar = {"train": NUM_CELLS, "test": NUM_TEST_CELLS}

    def example(self, split: str, index: int) -> dict[str, Any]:
        image = Image.fromarray(cell(split, index))
        return {"image": image, "mask": image, "label": index % 3, "tissue": 0}


class TinyPhotos(_Tiny):
    """RGB images of different sizes, and a test split whose labels are secret."""

    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="plain"),
        tfds.core.BuilderConfig(name="fancy"),
    ]
    FEATURES: ClassVar = {
        "photo": tfds.features.Image(),
        "kind": tfds.features.ClassLabel(num_classes=4),
    }
    SPLITS: ClassVar = {"train": 12, "validation": 8, "test": 5}

    def example(self, split: str, index: int) -> dict[str, Any]:
        kind = -1 if split == "test" else index % 4
        return {"photo": Image.fromarray(photo(index)), "kind": kind}


class TinyArrays(_Tiny):
    """Yields NumPy images, which TFDS encodes with TensorFlow."""

    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(4, 4, 3)),
        "label": _LETTERS,
    }
    SPLITS: ClassVar = {"train": 2, "test": 2}

    def example(self, split: str, index: int) -> dict[str, Any]:
        return {"image": np.zeros((4, 4, 3), np.uint8), "label": index}


class TinyWords(_Tiny):
    """No images."""

    FEATURES: ClassVar = {"text": tfds.features.Text(), "label": _LETTERS}
    SPLITS: ClassVar = {"train": 2, "test": 2}

    def example(self, split: str, index: int) -> dict[str, Any]:
        return {"text": "word", "label": index}


class TinyTrain(_Tiny):
    """No test split."""

    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": _LETTERS,
    }
    SPLITS: ClassVar = {"train": 2}

    def example(self, split: str, index: int) -> dict[str, Any]:
        return {"image": Image.fromarray(np.zeros((4, 4), np.uint8)), "label": index}


def prepare_all(root: Path) -> None:
    """Prepares the sets that tests only read, the cells in three shards."""
    for name in ("tiny_cells", "tiny_photos/plain", "tiny_words", "tiny_train"):
        config = tfds.download.DownloadConfig(
            num_shards=3 if name == "tiny_cells" else 1, try_download_gcs=False
        )
        builder = tfds.builder(name, data_dir=root)
        builder.download_and_prepare(file_format="array_record", download_config=config)
