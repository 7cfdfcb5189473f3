"""A data set as a training sees it: images and labels in three parts."""

import dataclasses
import functools

import numpy as np

from edl_jax.data.arrays import Array, LazyArray, content_digest, read_chunks

_STATISTICS_IMAGES = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three parts that do not overlap; the arrays are read-only.

    Attributes:
      name: the name in `DATASETS`, such as "digits", or the one that TFDS has for it.
      train_images: `[n, h, w, c]`, uint8: an array, or a `LazyArray` where they are read while
        training; likewise `val_images` and `test_images`, of the same type.
      train_labels: `[n]`, int32, in `[0, num_classes)`; likewise `val_labels` and `test_labels`.
      class_names: names of the classes, by label.
      crop_padding: padding of the usual random crop, in pixels: an eighth of the shorter side.
      flip: whether mirrored images keep their meaning; false for characters, such as digits.
      source: a sentence that says where the images come from and why.
      mean: mean of each channel of the train images in units of 0..1, `[c]`, float32.
      std: standard deviation likewise.
    """

    name: str
    train_images: Array
    train_labels: np.ndarray
    val_images: Array
    val_labels: np.ndarray
    test_images: Array
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    crop_padding: int
    flip: bool
    source: str
    mean: np.ndarray
    std: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_counts(self) -> np.ndarray:
        """Train examples of each class by their (perhaps wrong) labels, `[num_classes]`, int64."""
        return np.bincount(self.train_labels, minlength=self.num_classes)

    @property
    def streamed(self) -> bool:
        """Whether the images are read while training instead of being in memory."""
        return isinstance(self.train_images, LazyArray)

    @functools.cached_property
    def digest(self) -> str:
        """What tells these images and labels from others of the same name, 16 hexadecimal digits.

        It covers labels, pixels, names of the classes, crop padding and flip; of streamed images,
        the digest of their source (of TFDS files: names and sizes) and the chosen rows.
        """
        about = [*map(str, self.class_names), self.crop_padding, self.flip]
        images = (self.train_images, self.val_images, self.test_images)
        return content_digest(about, self.train_labels, self.val_labels, self.test_labels, *images)

    @property
    def identity(self) -> dict[str, str]:
        """Name and digest, by which a run folder knows its data."""
        return {"name": self.name, "digest": self.digest}


def channel_statistics(images: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, of 10,000 evenly spaced images at most.

    They are exact up to the rounding to float32. The deviation of a channel that is the same
    everywhere is given as 1, so that one can divide.
    """
    count = min(len(images), _STATISTICS_IMAGES)
    levels, counts = np.arange(256.0), np.zeros((images.shape[-1], 256), np.int64)
    for chunk in read_chunks(images, np.arange(count) * len(images) // count):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(chunk[..., channel].ravel(), minlength=256)
    pixels = count * images.shape[1] * images.shape[2]
    mean = counts @ levels / pixels
    variance = counts @ levels**2 / pixels - mean**2  # exactly 0 where all pixels are alike
    std = np.sqrt(np.where(variance > 0, variance, 255.0**2))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)
