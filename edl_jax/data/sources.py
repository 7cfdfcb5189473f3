"""What a data set is read from; images in memory, your own or the digits of scikit-learn."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from edl_jax.data.images import fit_square
from edl_jax.data.optional import require
from edl_jax.errors import DataError
from edl_jax.registry import Registry

_DIGITS_TEST = 360
_DIGEST_ROWS = 1000


class ImageSource(Protocol):
    """Labelled images in two splits, "train" and "test"."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def description(self) -> str:
        """A sentence that says where the images come from."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        ...

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        ...

    @property
    def flip(self) -> bool:
        """Whether mirrored images keep their meaning."""
        ...

    @property
    def digest(self) -> str:
        """What tells its images and classes from others of the same name, hexadecimal digits."""
        ...

    def read(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Decodes the images at `rows`, `[k]`: `[k, height, width, channels]`, uint8."""
        ...

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The same, for many images at once: from a cache, or in parallel."""
        ...

    def labels(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The labels at `rows`, `[k]`, int32, in `[0, num_classes)`."""
        ...

    def superclasses(self) -> np.ndarray | None:
        """The superclass of each class, `[num_classes]`, if the data set has any."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
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

    name: str
    description: str
    class_names: tuple[str, ...]
    arrays: dict[str, tuple[np.ndarray, np.ndarray]]
    flip: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.arrays, Mapping) or {*self.arrays} != {"train", "test"}:
            names = self.arrays if isinstance(self.arrays, Mapping) else [type(self.arrays)]
            raise DataError(
                f"data set {self.name!r} has the splits {', '.join(map(str, names))}; "
                "expected train and test, in a dictionary."
            )
        # Not a set, whose order differs from process to process, nor the letters of a string.
        if not isinstance(self.class_names, list | tuple | np.ndarray) or len(self.class_names) < 2:
            raise DataError(
                f"data set {self.name!r} has the classes {self.class_names!r}; expected a tuple of "
                "2 or more names."
            )
        object.__setattr__(self, "class_names", tuple(self.class_names))
        for split, pair in self.arrays.items():
            parts = pair if isinstance(pair, list | tuple) else (pair,)
            if len(parts) != 2 or not all(hasattr(part, "__array__") for part in parts):
                kinds = " and ".join(type(part).__name__ for part in parts)
                raise DataError(
                    f"the {split} images and labels of {self.name!r} are {kinds}; "
                    "expected two NumPy arrays, in a tuple."
                )
        arrays = {split: tuple(map(np.asarray, pair)) for split, pair in self.arrays.items()}
        object.__setattr__(self, "arrays", arrays)
        for split, (images, labels) in self.arrays.items():
            shape = (*images.shape[:1], *self.image_shape)
            is_alike = images.ndim == 4 and images.shape == shape and shape[3] in (1, 3)
            is_alike = is_alike and min(shape[1:3]) > 0
            if images.dtype != np.uint8 or not is_alike:
                raise DataError(
                    f"the {split} images of {self.name!r} are {images.dtype}{[*images.shape]}; "
                    "expected uint8[n, height, width, channels], alike in both splits but for n, "
                    "of 1 or 3 channels."
                )
            whole = np.issubdtype(labels.dtype, np.integer)
            if not whole or labels.shape != shape[:1]:
                raise DataError(
                    f"the {split} labels of {self.name!r} are {labels.dtype}{[*labels.shape]}; "
                    f"expected whole numbers, [{shape[0]}]."
                )
            check_labels(self, split, labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.arrays["train"][0].shape[1:]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        return {split: len(labels) for split, (_, labels) in self.arrays.items()}

    @property
    def digest(self) -> str:
        """What tells its images, labels and classes from others, 16 hexadecimal digits."""
        pairs = [self.arrays[split] for split in ("train", "test")]
        arrays = [labels.astype(np.int32) for _, labels in pairs] + [images for images, _ in pairs]
        return content_digest([*map(str, self.class_names), self.flip], *arrays)

    def resized(self, size: int) -> "ArraySource":
        """The same with images of `size` by `size`, cut to the square in their middle.

        Raises:
          UnavailableError: Pillow is missing.
        """
        make = require("PIL.Image").fromarray
        channels = self.image_shape[2]

        def fit(image: np.ndarray) -> np.ndarray:
            fitted = fit_square(make(image[..., 0] if channels == 1 else image), size)
            return np.asarray(fitted).reshape(size, size, channels)

        arrays = {
            split: (np.stack([fit(image) for image in images]), labels)
            for split, (images, labels) in self.arrays.items()
        }
        return dataclasses.replace(self, arrays=arrays)

    def read(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The images at `rows`, copied."""
        return self.arrays[split][0][rows]

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The images at `rows`, copied."""
        return self.read(split, rows)

    def labels(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The labels at `rows`, copied."""
        return self.arrays[split][1][rows].astype(np.int32)

    def superclasses(self) -> None:
        """There are none."""


def content_digest(about: Any, *arrays: np.ndarray) -> str:
    """16 hexadecimal digits for arrays, and for plain data about them."""
    digest = hashlib.sha256(repr(about).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        for start in range(0, len(array), _DIGEST_ROWS):  # what is mapped need not fit memory
            digest.update(np.ascontiguousarray(array[start : start + _DIGEST_ROWS]).data)
    return digest.hexdigest()[:16]


def check_labels(source: ImageSource, split: str, labels: np.ndarray, advice: str = "") -> None:
    """Raises a DataError if labels are not those of classes; `advice` ends it."""
    num_classes = len(source.class_names)
    wrong = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if wrong.size:
        found = ", ".join(map(str, wrong[:3])) + (", ..." if wrong.size > 3 else "")
        raise DataError(
            f"{split} labels out of range 0..{num_classes - 1} in {source.name} "
            f"({source.description}): {found}. {advice}".rstrip()
        )


# What makes a data set, by name; those of TFDS are found without it.
DATASETS: Registry[Callable[[], ArraySource]] = Registry("data set")


@DATASETS.register("digits")
def digits() -> ArraySource:
    """Scikit-learn's 1,797 handwritten digits, shuffled once; the last 360 are the test split.

    Raises:
      UnavailableError: scikit-learn is missing.
    """
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
