"""A folder of images, with one sub-folder for each class."""

from pathlib import Path
from typing import Any

import numpy as np

from edl_jax.data.images import fit_square
from edl_jax.data.optional import require
from edl_jax.data.sources import ArraySource
from edl_jax.errors import DataError

PREFIX = "folder:"
Files = dict[str, list[tuple[str, Path]]]  # of each split, the images' classes and paths
_TEST_EVERY = 5  # of a folder without splits, one image in so many is for testing


def find_images(root: Path) -> Files:
    """The images of a folder: of its train/ and test/, or in one split "all" where it has neither.

    Raises:
      DataError: if there are no sub-folders with images, or one split has other classes.
    """
    splits = ["train", "test"] if all((root / x).is_dir() for x in ("train", "test")) else ["all"]
    files = {}
    known = {*require("PIL.Image").registered_extensions()}
    for split in splits:
        top = root if split == "all" else root / split
        found = sorted(top.glob("*/*")) if top.is_dir() else []
        files[split] = [(x.parent.name, x) for x in found if x.suffix.lower() in known]
    classes = {split: {name for name, _ in images} for split, images in files.items()}
    if len({*map(frozenset, classes.values())}) > 1 or len(classes[splits[0]]) < 2:
        told = "; ".join(f"{x}: {', '.join(sorted(y)[:9]) or 'none'}" for x, y in classes.items())
        raise DataError(
            f"{root} has images of the classes {told}; expected a sub-folder of images for each of "
            "two or more classes, in it or, the same ones, in its train/ and in its test/."
        )
    return files


def read_folder(root: Path, files: Files, image_size: int | None) -> ArraySource:
    """Read a folder's images; those of a folder without splits are split once, by a fixed seed.

    Args:
      root: the folder.
      files: from `find_images`.
      image_size: side of the square that images are resized and cropped to; None if all are alike.

    Raises:
      DataError: if an image cannot be read, or has another size than the first.
    """
    if "all" in files:
        rows = np.random.default_rng(0).permutation(len(files["all"]))
        shuffled = [files["all"][row] for row in rows]
        count = max(len(rows) // _TEST_EVERY, 1)
        files = {"train": shuffled[count:], "test": shuffled[:count]}
    class_names = tuple(sorted({name for images in files.values() for name, _ in images}))
    images = {split: [_read(x, image_size) for _, x in found] for split, found in files.items()}
    shape = images["train"][0].shape
    for split, found in files.items():
        for (_, path), image in zip(found, images[split], strict=True):
            if image.shape != shape:
                raise DataError(
                    f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and "
                    f"{files['train'][0][1]} {shape[1]} x {shape[0]}; expected all alike, or an "
                    "image_size to resize them to."
                )
    labels = {
        split: np.asarray([class_names.index(name) for name, _ in found], np.int32)
        for split, found in files.items()
    }
    arrays = {split: (np.stack(images[split]), labels[split]) for split in files}
    return ArraySource(root.name, f"images in {root}", class_names, arrays)


def _read(path: Path, image_size: int | None) -> np.ndarray:
    try:
        with require("PIL.Image").open(path) as image:
            found: Any = image.convert("RGB")
            return np.asarray(found if image_size is None else fit_square(found, image_size))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}).") from error
