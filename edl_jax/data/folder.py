"""A folder of images, with one sub-folder for each class."""

from pathlib import Path

import numpy as np

from edl_jax.data.images import decode_image, require
from edl_jax.data.sources import ArraySource
from edl_jax.errors import DataError

PREFIX = "folder:"
_TEST_EVERY = 5  # of a folder without splits, one image in so many is for testing


def find_images(root: Path) -> dict[str, list[Path]]:
    """The images of a folder's train/ and test/, or else of all, split once by a fixed seed."""
    tops = {split: root / split for split in ("train", "test")}
    if not all(top.is_dir() for top in tops.values()):
        tops = {"all": root}
    known = {*require("PIL.Image").registered_extensions()}
    files = {
        split: [path for path in sorted(top.glob("*/*")) if path.suffix.lower() in known]
        for split, top in tops.items()
    }
    classes = {split: sorted({x.parent.name for x in paths}) for split, paths in files.items()}
    first, *others = classes.values()
    if len(first) < 2 or any(other != first for other in others):
        raise DataError(
            f"{root} has images of the classes {classes}; expected a sub-folder of images for each "
            "of two or more classes, in it or, the same ones, in its train/ and in its test/."
        )
    if "all" in files:
        count = max(len(files["all"]) // _TEST_EVERY, 1)
        order = np.random.default_rng(0).permutation(len(files["all"]))
        shuffled = [files["all"][row] for row in order]
        files = {"train": shuffled[count:], "test": shuffled[:count]}
    return files


def read_folder(root: Path, files: dict[str, list[Path]], image_size: int | None) -> ArraySource:
    """Read what `find_images` found, resized and cropped to squares if a size is given."""
    class_names = tuple(sorted({path.parent.name for paths in files.values() for path in paths}))
    arrays = {}
    for split, paths in files.items():
        images = [_read(path, image_size) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and {paths[0]} has "
                    f"{images[0].shape[1]} x {images[0].shape[0]}; expected all alike, or an "
                    "image_size to resize them to."
                )
        labels = [class_names.index(path.parent.name) for path in paths]
        arrays[split] = np.stack(images), np.asarray(labels, np.int32)
    return ArraySource(root.name, f"images in {root}", class_names, arrays)


def _read(path: Path, image_size: int | None) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), 3, image_size)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}).") from error
