"""What a data set is read from: arrays of your own, a folder of images, scikit-learn's digits."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.arrays import LazyArray, content_digest, require
from edl_jax.errors import DataError
from edl_jax.registry import Registry


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A data set of labeled images in memory, checked at construction.

    Attributes:
      name: of the data set.
      description: a sentence that says where the images come from.
      class_names: names of the classes, by label.
      arrays: of the split "train" and of the split "test" the images, `[n, height, width,
        channels]`, uint8, of 1 or 3 channels, and their labels, `[n]`, whole numbers below the
        number of classes; arrays of NumPy (a `memmap` too) or JAX.
      flip: whether mirrored images keep their meaning, so that augmentation may mirror them.

    Raises:
      DataError: naming what cannot be used and what was expected.
    """

    name: str
    description: str
    class_names: tuple[str, ...]
    arrays: dict[str, tuple[Any, Any]]
    flip: bool = True

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
            if isinstance(labels, np.ndarray):
                self.check_labels(split, labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.arrays["train"][0].shape[1:]

    @property
    def digest(self) -> str:
        """What tells its images, labels and classes from others, 16 hexadecimal digits."""
        images, labels = zip(self.arrays["train"], self.arrays["test"], strict=True)
        about = [*map(str, self.class_names), self.flip]
        return content_digest(about, *(x.astype(np.int32) for x in labels), *images)

    def check_labels(self, split: str, labels: np.ndarray) -> None:
        """Raise DataError for labels outside the range of classes."""
        num_classes = len(self.class_names)
        wrong = np.unique(labels[(labels < 0) | (labels >= num_classes)])
        if wrong.size:
            raise DataError(
                f"{split} labels out of range 0..{num_classes - 1} in {self.name} "
                f"({self.description}): {', '.join(map(str, wrong[:3]))}."
            )

    def resized(self, size: int | None) -> "ArraySource":
        """Return a copy with images center-cropped to squares and resized to `size`."""
        if size is None or self.image_shape[:2] == (size, size):
            return self
        arrays = {
            split: (np.stack([fit_square(image, size) for image in images]), labels)
            for split, (images, labels) in self.arrays.items()
        }
        return dataclasses.replace(self, arrays=arrays)


def _usable(arrays: Any) -> dict[str, tuple[Any, Any]] | None:
    """The arrays of an `ArraySource`, in memory as NumPy's; None if they are not what it holds."""
    if not isinstance(arrays, Mapping) or {*arrays} != {"train", "test"}:
        return None
    usable, shapes = {}, set()
    for split, pair in arrays.items():
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or not all(hasattr(x, "shape") for x in pair):
            return None
        images, labels = (x if isinstance(x, LazyArray) else np.asarray(x) for x in pair)
        shape = images.shape
        are_images = images.dtype == np.uint8 and len(shape) == 4 and shape[3] in (1, 3)
        are_labels = labels.dtype.kind in "iu" and labels.shape == shape[:1]
        if not are_images or not are_labels or 0 in shape:
            return None
        usable[split] = images, labels
        shapes.add(shape[1:])
    return usable if len(shapes) == 1 else None


def _in_words(arrays: Any) -> str:
    """What is where an `ArraySource` expects arrays."""
    if isinstance(arrays, Mapping):
        return ", ".join(f"{split}: {_in_words(pair)}" for split, pair in arrays.items())
    if isinstance(arrays, tuple):
        return f"({', '.join(map(_in_words, arrays))})"
    known = hasattr(arrays, "shape") and hasattr(arrays, "dtype")
    return f"{arrays.dtype}{[*arrays.shape]}" if known else type(arrays).__name__


def find_images(root: Path) -> dict[str, list[Path]]:
    """The images of a folder's train/ and test/, or else of all, split once; in a fixed order.

    The order is random, so that the first images of a split are of all classes.
    """
    splits = [root / "train", root / "test"]
    tops = splits if all(split.is_dir() for split in splits) else [root]
    known = {*require("PIL.Image").registered_extensions()}
    images = []
    for top in tops:
        paths = [x for x in sorted(top.glob("[!.]*/[!.]*")) if x.suffix.lower() in known]
        images.append([paths[row] for row in np.random.default_rng(0).permutation(len(paths))])
    classes = [sorted({path.parent.name for path in paths}) for paths in images]
    if len(classes[0]) < 2 or classes[-1] != classes[0]:
        told = {top.name: names for top, names in zip(tops, classes, strict=True)}
        raise DataError(
            f"{root} has images of the classes {told}; expected a sub-folder of images for each "
            "of two or more classes, in it or, the same ones, in its train/ and in its test/."
        )
    if tops == [root]:
        count = max(len(images[0]) // 5, 1)  # one image in five is for testing
        images = [images[0][count:], images[0][:count]]
    return dict(zip(("train", "test"), images, strict=True))


def read_folder(root: Path, files: dict[str, list[Path]], image_size: int | None) -> ArraySource:
    """Read what `find_images` found, resized and cropped to squares if a size is given."""
    class_names = tuple(sorted({path.parent.name for paths in files.values() for path in paths}))
    arrays = {}
    for split, paths in files.items():
        images = []
        for path in paths:
            try:
                images.append(decode_image(path.read_bytes(), 3, image_size))
            except (OSError, ValueError, require("PIL.Image").DecompressionBombError) as error:
                raise DataError(f"{path} cannot be read as an image ({error}).") from error
            if images[-1].shape != images[0].shape:
                found, first = (f"{x.shape[1]} x {x.shape[0]}" for x in (images[-1], images[0]))
                raise DataError(
                    f"{path} has {found} pixels, and {paths[0]} has {first}; expected all alike, "
                    "or an image_size to resize them to."
                )
        labels = [class_names.index(path.parent.name) for path in paths]
        arrays[split] = np.stack(images), np.asarray(labels, np.int32)
    return ArraySource(root.name, f"images in {root}", class_names, arrays)


def decode_image(data: bytes, channels: int, size: int | None) -> np.ndarray:
    """An image file's pixels, `[height, width, channels]`, uint8; see `fit_square` for `size`."""
    with require("PIL.Image").open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):  # which Pillow would cut off at 255
            image = require("PIL.Image").fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"its mode is {image.mode!r}; expected 8 or 16 bits a channel")
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        return pixels if size is None else fit_square(pixels, size)


def fit_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle of an image, resized to `[size, size, channels]`."""
    pillow, channels = require("PIL.Image"), pixels.shape[2]
    image = pillow.fromarray(pixels[..., 0] if channels == 1 else pixels)
    # Widens when it makes the image smaller, so nothing is skipped.
    fitted = require("PIL.ImageOps").fit(image, (size, size), pillow.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(size, size, channels)


# What makes a data set, by name; those of TFDS are found without it.
DATASETS: Registry[Callable[[], ArraySource]] = Registry("data set")


@DATASETS.register("digits")
def digits() -> ArraySource:
    """Scikit-learn's 1,797 handwritten digits, shuffled once; the last 360 are the test split."""
    loaded: Any = require("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    images = np.round(loaded.images * (255 / 16)).astype(np.uint8)[order][..., None]
    labels = loaded.target[order]
    arrays = {"train": (images[:-360], labels[:-360]), "test": (images[-360:], labels[-360:])}
    description, class_names = "scikit-learn's handwritten digits", tuple("0123456789")
    return ArraySource("digits", description, class_names, arrays, flip=False)
