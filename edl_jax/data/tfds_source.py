"""Image classification sets that TFDS has prepared, read without TensorFlow."""

import contextlib
import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.array_cache import cached_array
from edl_jax.data.images import decode_image
from edl_jax.data.optional import require
from edl_jax.data.sources import check_labels, content_digest
from edl_jax.data.streaming import StreamedImages, read_chunks
from edl_jax.errors import DataError

DAMAGED = "The files are damaged or incomplete: delete the folder and prepare it again."
# Data sets of characters, which mean something else or nothing when mirrored. TFDS does not say.
_NOT_MIRRORED = {
    *("mnist", "mnist_corrupted", "emnist", "kmnist", "svhn_cropped"),
    *("binary_alpha_digits", "cmaterdb", "omniglot"),
}
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_LABEL_CHUNK = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A prepared data set.

    A split of which at least a tenth is wanted is read whole and cached, so that next time it is
    only mapped; fewer examples are decoded on their own.

    Attributes:
      name: as TFDS knows it, with its configuration, such as "imagenette/320px".
      description: says where it is prepared.
      class_names: names of the classes.
      image_shape: height, width and channels.
      resize: whether images have to be resized to that.
      splits: TFDS's name of the "train" and of the "test" split.
      keys: the image's and the label's feature; and the superclass's, if there is one.
      records: the splits' serialized examples.
      shards: the splits' files.
      folder: where it is prepared.
      cache: folder for decoded arrays, if there is any.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resize: bool
    splits: dict[str, str]
    keys: tuple[str, ...]
    records: dict[str, Any]
    shards: dict[str, tuple[Path, ...]]
    folder: Path
    cache: Path | None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        return {split: len(records) for split, records in self.records.items()}

    @property
    def flip(self) -> bool:
        """Whether mirrored images keep their meaning."""
        return self.name.split("/")[0] not in _NOT_MIRRORED

    @property
    def digest(self) -> str:
        """What tells its files from others, by their names and sizes, 16 hexadecimal digits."""
        about: list[Any] = [self.name, self.folder.name, self.class_names, self.keys]
        about += [self.image_shape, self.resize]
        for split in self.splits:
            files = [[name, size] for name, size, _ in self._origin(split)["files"]]
            about.append([self.splits[split], files])
        return content_digest(about)

    def read(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Decodes the images at `rows`.

        Raises:
          DataError: the files are damaged.
        """
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        with self._reading(split):
            for index, example in enumerate(self._examples(split, rows)):
                (content,) = example[self.keys[0]].bytes_list.value
                images[index] = decode_image(content, self.image_shape, resize=self.resize)
        return images

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The images at `rows`, from the cache if they are many."""
        streamed = StreamedImages(self, split, np.arange(self.sizes[split]))
        if not self._whole(split, rows):
            return np.concatenate(list(read_chunks(streamed, rows)))
        every = cached_array(
            self.cache,
            f"{split}_images",
            self._origin(split),
            dtype=np.uint8,
            shape=streamed.shape,
            chunks=lambda: read_chunks(streamed, streamed.rows),
        )
        return every if np.array_equal(rows, streamed.rows) else every[rows]

    def labels(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The labels at `rows`.

        Raises:
          DataError: the files are damaged.
        """
        labels = self._labels(split, rows, self.keys[1])
        check_labels(self, split, labels, DAMAGED)
        return labels

    def labels_are_secret(self, split: str) -> bool:
        """Whether the labels are not told: TFDS has -1 for all of them."""
        return self._labels(split, np.arange(1), self.keys[1])[0] < 0

    def superclasses(self) -> np.ndarray | None:
        """The superclass of each class, where examples have a coarse label.

        Raises:
          DataError: a class has no training image, from which its superclass would be known.
        """
        if len(self.keys) < 3:
            return None
        rows = np.arange(self.sizes["train"])
        table = np.full(len(self.class_names), -1)
        table[self._labels("train", rows, self.keys[1])] = self._labels("train", rows, self.keys[2])
        if table.min() < 0:
            name = self.class_names[int(table.argmin())]
            raise DataError(f"class {name} of {self.name} in {self.folder} has no training images")
        return table

    def _labels(self, split: str, rows: np.ndarray, key: str) -> np.ndarray:
        def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
            with self._reading(split):
                for piece in np.split(rows, range(_LABEL_CHUNK, len(rows), _LABEL_CHUNK)):
                    examples = self._examples(split, piece)
                    values = [example[key].int64_list.value for example in examples]
                    yield np.array(values, np.int32).reshape(len(piece))

        if not self._whole(split, rows):
            return np.concatenate(list(chunks(rows)))
        size = self.sizes[split]
        return cached_array(
            self.cache,
            f"{split}_{key}",
            self._origin(split),
            dtype=np.int32,
            shape=(size,),
            chunks=lambda: chunks(np.arange(size)),
        )[rows]

    def _whole(self, split: str, rows: np.ndarray) -> bool:
        return 10 * len(rows) >= self.sizes[split]

    def _origin(self, split: str) -> dict[str, Any]:
        """What decoded arrays depend on; see `cached_array`."""
        with self._reading(split):
            stats = [(path.name, path.stat()) for path in self.shards[split]]
        return {
            "set": self.name,
            "folder": str(self.folder.resolve()),
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "resize": self.resize,
            "pillow": require("PIL").__version__,
        }

    def _examples(self, split: str, rows: np.ndarray) -> Iterator[Any]:
        """The features of the examples at `rows`, as `tf.train.Example` has them."""
        proto = require("tensorflow_datasets.proto").tf_example_pb2
        for record in self.records[split].__getitems__(rows.tolist()):
            yield proto.Example.FromString(record).features.feature

    @contextlib.contextmanager
    def _reading(self, split: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ArrayRecord raises RuntimeError, Pillow OSError, others too
            where = f"the {self.splits[split]} split of {title_of(self.name)} in {self.folder}"
            raise DataError(f"cannot read {where}: {error}. {advice(error)}") from error


def advice(error: Exception) -> str:
    """What to do about data that cannot be read: what the machine refuses now may be sound."""
    refusal = (
        error.errno if isinstance(error, OSError) else None
    )  # Pillow's OSErrors have no number
    if isinstance(error, MemoryError) or refusal not in (None, errno.ENOENT):
        return "The files were left as they are: give the same command again when they can be read."
    return DAMAGED


def title_of(name: str) -> str:
    """The name of a data set in sentences."""
    return _TITLES.get(name, name)
