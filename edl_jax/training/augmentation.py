"""Image augmentation as pure functions that run on the device, on batches of uint8 images."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


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


def augment(key: jax.Array, images: jax.Array, *, padding: int, flip: bool) -> jax.Array:
    """Crops every image at random after zero padding, and mirrors it at random.

    The augmentation of He et al. (2016) for CIFAR-10 with `padding=4, flip=True`. Every image has
    offsets and a coin of its own. The padding is black (pixel 0), as it is before normalisation.

    Args:
      key: typed PRNG key.
      images: pixels, `[batch, h, w, c]`, uint8.
      padding: pixels added on every side; offsets are uniform over `0..2 * padding`.
      flip: whether to mirror left and right with probability 1/2.

    Returns:
      The augmented images, `[batch, h, w, c]`, uint8.

    References:
      He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016,
      section 4.2, https://arxiv.org/abs/1512.03385
    """
    crop_key, flip_key = jax.random.split(key)
    batch, *size = images.shape
    if padding:
        sides = (padding, padding)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        offsets = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)

        def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), size)

        images = jax.vmap(crop)(padded, offsets)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
