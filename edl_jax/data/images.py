"""Encoded images to arrays, by Pillow, so that every machine decodes alike."""

import io
from typing import Any

import numpy as np

from edl_jax.data.optional import require


def decode_image(data: bytes, channels: int, size: int | None) -> np.ndarray:
    """An image file's pixels, `[height, width, channels]`, uint8; see `fit_square` for `size`."""
    with require("PIL.Image").open(io.BytesIO(data)) as image:
        image = image.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(image if size is None else fit_square(image, size))
        return pixels.reshape(*pixels.shape[:2], channels)


def fit_square(image: Any, size: int) -> Any:
    """The square in the middle of a Pillow image, resized to `size` by `size`.

    The filter is bilinear and widens when it makes the image smaller, so nothing is skipped.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), require("PIL.Image").Resampling.BILINEAR, box=box)
