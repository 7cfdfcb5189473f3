"""A folder of images, with one sub-folder for each class."""

from pathlib import Path

import numpy as np

from edl_jax.data.images import decode_image
from edl_jax.data.optional import require
from edl_jax.data.sources import ArraySource
from edl_jax.errors import DataError

PREFIX = "folder:"
Files = dict[str, list[Path]]  # the images of each split; their folders name their classes
_TEST_EVERY = 5  # of a folder without splits, one image in so many is for testing


def find_images(root: Path) -> Files:
    """The images of a folder's train/ and test/; or, where it has neither, its own.

    Those are split once, by a fixed seed.
    """
    tops = {split: root / split for split in ("train", "test")}
    if not all(top.is_dir() for top in tops.values()):
        tops = {"all": root}
    known = {*require("PIL.Image").registered_extensions()}
    files = {
        split: [path for path in sorted(top.glob("*/*")) if path.suffix.lower() in known]
        for split, top in tops.items()
    }
    classes = {split: {path.parent.name for path in paths} for split, paths in files.items()}
    if len({*map(frozenset, classes.values())}) > 1 or any(len(x) < 2 for x in classes.values()):
        told = "; ".join(f"{x}: {', '.join(sorted(y)[:9]) or 'none'}" for x, y in classes.items())
        raise DataError(
            f"{root} has images of the classes {told}; expected a sub-folder of images for each of "
            "two or more classes, in it or, the same ones, in its train/ and in its test/."
        )
    if "all" in files:
        count = max(len(files["all"]) // _TEST_EVERY, 1)
        order = np.random.default_rng(0).permutation(len(files["all"]))
        shuffled = [files["all"][row] for row in order]
        files = {"train": shuffled[count:], "test": shuffled[:count]}
    return files


def read_folder(root: Path, files: Files, image_size: int | None) -> ArraySource:
    """Read what `find_images` found, resized and cropped to squares if a size is given."""
    class_names = tuple(sorted({path.parent.name for paths in files.values() for path in paths}))
    first, arrays = files["train"][0], {}
    shape = _read(first, image_size).shape
    for split, paths in files.items():
        images = np.empty((len(paths), *shape), np.uint8)
        for row, path in enumerate(paths):
            image = _read(path, image_size)
            if image.shape != shape:
                raise DataError(
                    f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and {first} "
                    f"{shape[1]} x {shape[0]}; expected all alike, or an image_size to resize them "
                    "to."
                )
            images[row] = image
        labels = [class_names.index(path.parent.name) for path in paths]
        arrays[split] = images, np.asarray(labels, np.int32)
    return ArraySource(root.name, f"images in {root}", class_names, arrays)


def _read(path: Path, image_size: int | None) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), 3, image_size)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}).") from error
