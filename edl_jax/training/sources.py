"""What a data set is read from, and the digits that scikit-learn brings along."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from edl_jax.training.images import fit_square
from edl_jax.training.optional import require

_DIGITS_TEST = 360


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

    def read(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Decodes the images at `rows`, `[k]`: `[k, height, width, channels]`, uint8."""
        ...

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The same, for many images at once: from a cache, or in parallel."""
        ...

    def labels(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The labels at `rows`, `[k]`, int32."""
        ...

    def superclasses(self) -> np.ndarray | None:
        """The superclass of each class, `[num_classes]`, if the data set has any."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class DigitsSource:
    """Scikit-learn's 1,797 handwritten digits, shuffled once; the last 360 are the test split."""

    description: str
    all_images: np.ndarray
    all_labels: np.ndarray
    name = "digits"
    class_names = tuple("0123456789")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.all_images.shape[1:]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each split."""
        return {"train": len(self.all_labels) - _DIGITS_TEST, "test": _DIGITS_TEST}

    def read(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The images at `rows`, copied."""
        return self.all_images[rows + (self.sizes["train"] if split == "test" else 0)]

    def images(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The images at `rows`, copied."""
        return self.read(split, rows)

    def labels(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The labels at `rows`, copied."""
        return self.all_labels[rows + (self.sizes["train"] if split == "test" else 0)]

    def superclasses(self) -> None:
        """Digits have none."""


def open_digits(image_size: int | None, reason: str | None = None) -> DigitsSource:
    """Loads the digits.

    Args:
      image_size: side to which the images are resized; None is their own, 8.
      reason: why digits take another set's place, for the description.

    Raises:
      UnavailableError: scikit-learn is missing, or Pillow to resize with.
    """
    loaded: Any = require("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    images = np.round(loaded.images * (255 / 16)).astype(np.uint8)[order]
    if image_size is not None:
        pillow = require("PIL.Image")
        resized = [fit_square(pillow.fromarray(image), image_size) for image in images]
        images = np.stack([np.asarray(image) for image in resized])
    description = "scikit-learn's handwritten digits" + (f" ({reason})" if reason else "")
    return DigitsSource(description, images[..., None], loaded.target.astype(np.int32)[order])
