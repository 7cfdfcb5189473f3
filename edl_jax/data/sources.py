"""What a data set is read from; images in memory, your own or the digits of scikit-learn."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.images import fit_square, require
from edl_jax.errors import DataError
from edl_jax.registry import Registry

_DIGITS_TEST = 360
_DIGEST_ROWS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array whose rows are read when they are indexed.

    `rows` are their places in all that `read` can read, from `[k]` to `[k, *row_shape]`; `digest`
    tells all that from others, and `cache` is the file where the whole array may be kept.
    """

    rows: np.ndarray
    row_shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]
    digest: str
    cache: Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, *row_shape)`."""
        return (len(self.rows), *self.row_shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """The rows at `indices`, as an array in memory gives them."""
        places = self.rows[indices]
        return self.read(np.reshape(places, -1)).reshape((*np.shape(places), *self.row_shape))

    def part(self, rows: np.ndarray) -> "LazyArray":
        """Some of its rows, read when they are indexed."""
        return dataclasses.replace(self, rows=self.rows[rows])


Array = np.ndarray | LazyArray


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource:
    """Labelled images of the splits "train" and "test"; see `ArraySource` for the fields."""

    name: str
    description: str
    class_names: tuple[str, ...]
    arrays: dict[str, tuple[Any, Any]]
    flip: bool = True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.arrays["train"][0].shape[1:]

    def lazy_images(self, split: str) -> LazyArray:
        """The images of a split, read when they are indexed."""
        return self.arrays[split][0]

    def check_labels(self, split: str, labels: np.ndarray) -> None:
        """Refuse labels that are not those of classes."""
        num_classes = len(self.class_names)
        wrong = np.unique(labels[(labels < 0) | (labels >= num_classes)])
        if wrong.size:
            raise DataError(
                f"{split} labels out of range 0..{num_classes - 1} in {self.name} "
                f"({self.description}): {', '.join(map(str, wrong[:3]))}."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource(ImageSource):
    """Labelled images in memory. Checked when made.

    Attributes:
      name: of the data set.
      description: a sentence that says where the images come from.
      class_names: names of the classes, by label.
      arrays: of the split "train" and of the split "test" the images, `[n, height, width,
        channels]`, uint8, of 1 or 3 channels, and their labels, `[n]`, whole numbers below the
        number of classes; arrays of NumPy (a `memmap` too) or JAX, or what gives one by
        `__array__`.
      flip: whether mirrored images keep their meaning, so that augmentation may mirror them.

    Raises:
      DataError: naming what cannot be used and what was expected.
    """

    def __post_init__(self) -> None:
        # Not a set, whose order differs from process to process, nor the letters of a string.
        if not isinstance(self.class_names, list | tuple | np.ndarray) or len(self.class_names) < 2:
            raise DataError(
                f"data set {self.name!r} has the classes {self.class_names!r}; expected a tuple of "
                "2 or more names."
            )
        arrays = _usable(self.arrays)
        if arrays is None:
            raise DataError(
                f"data set {self.name!r} has the arrays {_in_words(self.arrays)}; expected "
                "{'train': (images, labels), 'test': (images, labels)}: NumPy arrays, images "
                "uint8[n, height, width, channels], alike in both splits but for n, of 1 or 3 "
                "channels, and labels whole numbers, [n]."
            )
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for split, (_, labels) in arrays.items():
            self.check_labels(split, labels)

    @property
    def digest(self) -> str:
        """What tells its images, labels and classes from others, 16 hexadecimal digits."""
        images, labels = zip(self.arrays["train"], self.arrays["test"], strict=True)
        about = [*map(str, self.class_names), self.flip]
        return content_digest(about, *(x.astype(np.int32) for x in labels), *images)

    def lazy_images(self, split: str) -> LazyArray:
        """The images of a split, read when they are indexed."""
        images = self.arrays[split][0]
        every, read = np.arange(len(images)), images.__getitem__
        return LazyArray(every, self.image_shape, images.dtype, read, self.digest)

    def resized(self, size: int | None) -> "ArraySource":
        """The same with images of `size` by `size`, cut to the square in their middle."""
        if size is None or self.image_shape[:2] == (size, size):
            return self
        arrays = {
            split: (np.stack([fit_square(image, size) for image in images]), labels)
            for split, (images, labels) in self.arrays.items()
        }
        return dataclasses.replace(self, arrays=arrays)


def _usable(arrays: Any) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """The arrays of an `ArraySource` as NumPy's, or None if they are not what it holds."""
    if not isinstance(arrays, Mapping) or {*arrays} != {"train", "test"}:
        return None
    found = {}
    for split, pair in arrays.items():
        if (
            not isinstance(pair, list | tuple)
            or [hasattr(x, "__array__") for x in pair] != [True] * 2
        ):
            return None
        images, labels = found[split] = tuple(map(np.asarray, pair))
        if images.ndim != 4 or images.size == 0 or images.shape[3] not in (1, 3):
            return None
        kinds = images.dtype.str + labels.dtype.kind
        if kinds not in ("|u1i", "|u1u") or labels.shape != images.shape[:1]:
            return None
    is_alike = found["train"][0].shape[1:] == found["test"][0].shape[1:]
    return found if is_alike else None


def _in_words(arrays: Any) -> str:
    """What is where an `ArraySource` expects arrays."""
    if isinstance(arrays, Mapping):
        return ", ".join(f"{split}: {_in_words(pair)}" for split, pair in arrays.items())
    if isinstance(arrays, tuple):
        return f"({', '.join(map(_in_words, arrays))})"
    if hasattr(arrays, "__array__"):
        return f"{arrays.dtype}{[*arrays.shape]}"
    return type(arrays).__name__


def content_digest(about: Any, *arrays: np.ndarray) -> str:
    """16 hexadecimal digits for arrays, and for plain data about them."""
    digest = hashlib.sha256(repr(about).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        for start in range(0, len(array), _DIGEST_ROWS):  # what is mapped need not fit memory
            digest.update(np.ascontiguousarray(array[start : start + _DIGEST_ROWS]).data)
    return digest.hexdigest()[:16]


# What makes a data set, by name; those of TFDS are found without it.
DATASETS: Registry[Callable[[], ArraySource]] = Registry("data set")


@DATASETS.register("digits")
def digits() -> ArraySource:
    """Scikit-learn's 1,797 handwritten digits, shuffled once; the last 360 are the test split."""
    loaded: Any = require("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    images = np.round(loaded.images * (255 / 16)).astype(np.uint8)[order][..., None]
    labels = loaded.target[order]
    train, test = slice(-_DIGITS_TEST), slice(-_DIGITS_TEST, None)
    return ArraySource(
        name="digits",
        description="scikit-learn's handwritten digits",
        class_names=tuple("0123456789"),
        arrays={"train": (images[train], labels[train]), "test": (images[test], labels[test])},
        flip=False,
    )


DATASETS.protect()
