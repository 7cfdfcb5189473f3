"""Encoded images to arrays, by Pillow, so that every machine decodes alike."""

import io
from typing import Any

import numpy as np

from edl_jax.data.optional import require


def decode_image(data: bytes, shape: tuple[int, int, int], *, resize: bool) -> np.ndarray:
    """Decodes an image file's content.

    Args:
      data: a PNG, JPEG or other file that Pillow reads.
      shape: height, width and channels; 1 channel is grey, 3 are RGB.
      resize: whether the image may have another size, and is then cut to the square in its
        middle and resized; see `fit_square`.

    Returns:
      `shape`, uint8.

    Raises:
      ValueError: without `resize`, the image has another size.
    """
    with require("PIL.Image").open(io.BytesIO(data)) as image:
        image = image.convert("L" if shape[2] == 1 else "RGB")
        return np.asarray(fit_square(image, shape[0]) if resize else image).reshape(shape)


def fit_square(image: Any, size: int) -> Any:
    """The square in the middle of a Pillow image, resized to `size` by `size`.

    That is, the shorter side is resized to `size` and the longer one cropped at both ends. The
    filter is bilinear and widens when it makes the image smaller, so nothing is skipped.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), require("PIL.Image").Resampling.BILINEAR, box=box)
