"""Image augmentation as pure functions that run on the device, on batches.

A batch goes through `augment` (each image by itself, on uint8 pixels), `normalize`, and `mix` of
`mixing.py` (pairs of images, on normalised floats, since a mixed pixel is no whole number).
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jax.typing import ArrayLike, DTypeLike

from edl_jax.checked import Checked, NotNegative
from edl_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Augmentation(Checked):
    """Which augmentations a training uses.

    With mixup and cutmix both on, a fair coin picks one of them for every batch.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    crop: bool = True
    """Whether to crop at random after black padding, where the data set has any padding."""
    flip: bool = True
    """Whether to mirror half of the images, where mirrored images keep their meaning."""
    cutout: Annotated[int, Ge(0)] = 0
    """Side in pixels of a square cut out of every image; 0: none."""
    mixup: NotNegative = 0.0
    """Alpha of the Beta(alpha, alpha) distribution of mixup's weight; 0: no mixup."""
    cutmix: NotNegative = 0.0
    """Alpha of the Beta(alpha, alpha) distribution of cutmix's area; 0: no cutmix."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels are soft."""
        return self.mixup > 0 or self.cutmix > 0


def normalize(
    images: jax.Array, mean: ArrayLike, std: ArrayLike, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Scales pixels to 0..1, then to zero mean and unit variance per channel.

    Computes `(images / 255 - mean) / std` in float32 and rounds once, to `dtype`.

    Args:
      images: pixels, `[batch, h, w, c]`, uint8.
      mean: mean of each channel in units of 0..1, `[c]`, float32.
      std: standard deviation of each channel in units of 0..1, `[c]`, float32.
      dtype: dtype of the result.

    Returns:
      The normalised images, `[batch, h, w, c]`, `dtype`.
    """
    mean = jnp.asarray(mean, jnp.float32)[None, None, None, :]
    std = jnp.asarray(std, jnp.float32)[None, None, None, :]
    return ((images.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)


def augment(
    key: jax.Array,
    images: jax.Array,
    index: jax.Array,
    settings: Augmentation,
    *,
    padding: int,
    flip: bool,
    mean: ArrayLike,
) -> jax.Array:
    """Crops, mirrors and cuts a square out of every image, each by its own random choices.

    Crops and flips are those of He et al. (2016) for CIFAR-10 with `padding=4, flip=True`; the
    padding is black (pixel 0), as it is before normalisation. An image's choices depend on `key`
    and on its own `index` only, so that they do not change with the number of devices that share
    a batch.

    Args:
      key: typed PRNG key of the batch, the same on every device.
      images: pixels, `[batch, h, w, c]`, uint8.
      index: place of each image in the global batch, `[batch]`, int32.
      settings: which augmentations to use.
      padding: pixels added on every side; offsets are uniform over `0..2 * padding`.
      flip: whether mirrored images keep their meaning in this data set.
      mean: mean of each channel in units of 0..1, `[c]`: the colour of what is cut out.

    Returns:
      The augmented images, `[batch, h, w, c]`, uint8.

    Raises:
      ConfigError: if the square to cut out is larger than an image.

    References:
      He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016,
      section 4.2, https://arxiv.org/abs/1512.03385
    """
    height, width, _ = images.shape[1:]
    if settings.cutout > min(height, width):
        raise ConfigError(
            f"Augmentation.cutout is {settings.cutout} with images of {height} x {width} pixels; "
            f"expected at most {min(height, width)}."
        )
    # One draw an image for all choices, a word each: the remainders are uniform to 1e-8.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    words = jax.vmap(lambda key: jax.random.bits(key, (5,), jnp.uint32))(keys)
    if settings.crop and padding:
        offsets = (words[:, :2] % (2 * padding + 1)).astype(jnp.int32)
        sides = (padding, padding)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        shape = images.shape[1:]
        starts = jnp.pad(offsets, ((0, 0), (0, 1)))
        images = jax.vmap(lambda x, start: jax.lax.dynamic_slice(x, start, shape))(padded, starts)
    if settings.flip and flip:
        mirrored = (words[:, 2] >> 31 == 1)[:, None, None, None]
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if settings.cutout:
        centres = (words[:, 3:] % jnp.array([[height, width]], jnp.uint32)).astype(jnp.int32)
        colour = jnp.round(jnp.asarray(mean, jnp.float32) * 255).astype(images.dtype)
        images = jax.vmap(cutout, (0, 0, None, None))(images, centres, settings.cutout, colour)
    return images


def cutout(image: jax.Array, centre: jax.Array, size: int, colour: jax.Array) -> jax.Array:
    """Fills a square of one image with one colour; the square may reach over the border.

    With its centre uniform over the pixels, many squares are cut short by the border, which the
    authors found to matter. They fill with 0 after normalisation, which is the mean colour.

    Args:
      image: pixels, `[h, w, c]`.
      centre: row and column of the square's centre, `[2]`, integer.
      size: side of the square in pixels.
      colour: what to fill with, `[c]`, dtype of the image.

    Returns:
      The image with its square filled, `[h, w, c]`.

    References:
      DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout",
      2017, https://arxiv.org/abs/1708.04552
    """
    inside = in_box(image.shape[0], image.shape[1], centre, jnp.array([size, size], jnp.int32))
    return jnp.where(inside[:, :, None], colour[None, None, :], image)


def in_box(height: int, width: int, centre: jax.Array, sides: jax.Array) -> jax.Array:
    """Where a box lies that the border cuts short, `[height, width]`, bool.

    Args:
      height: rows of the image.
      width: columns of the image.
      centre: row and column of the box's centre, `[2]`, integer.
      sides: its height and width, `[2]`, integer; of even sides one pixel more lies before the
        centre than after it.
    """
    rows, columns = (
        (axis >= first) & (axis < first + side)
        for axis, first, side in zip(
            (jnp.arange(height), jnp.arange(width)), centre - sides // 2, sides, strict=True
        )
    )
    return rows[:, None] & columns[None, :]
