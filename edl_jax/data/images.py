"""Encoded images to arrays, by Pillow, so that every machine decodes alike."""

import importlib
import io
from typing import Any

import numpy as np

from edl_jax.errors import DataError


class UnavailableError(DataError):
    """A data set cannot be had here; with "auto", another takes its place."""


def require(module: str) -> Any:
    """Import a module of the `data` extra when it is first needed, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f'{error}: pip install "edl_jax[data]"') from error


def decode_image(data: bytes, channels: int, size: int | None) -> np.ndarray:
    """An image file's pixels, `[height, width, channels]`, uint8; see `fit_square` for `size`."""
    with require("PIL.Image").open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        return pixels if size is None else fit_square(pixels, size)


def fit_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle of an image, resized to `[size, size, channels]`.

    The filter is bilinear and widens when it makes the image smaller, so nothing is skipped.
    """
    pillow, channels = require("PIL.Image"), pixels.shape[2]
    image = pillow.fromarray(pixels[..., 0] if channels == 1 else pixels)
    fitted = require("PIL.ImageOps").fit(image, (size, size), pillow.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(size, size, channels)
