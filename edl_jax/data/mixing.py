"""Mixup and cutmix as pure functions that run on the device, on batches of normalised images.

And the way of a batch through these and all that comes before them.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from edl_jax.data.augmentation import Augmentation, augment, in_box, normalize
from edl_jax.data.dataset import Dataset


def prepare(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    dataset: Dataset,
    settings: Augmentation,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """A batch as the model and the loss see it: augmented, normalised and mixed.

    Args:
      key: typed PRNG key of the batch, the same on every device.
      images: pixels, `[batch, h, w, c]`, uint8.
      labels: classes, `[batch]`, int32.
      index: place of each image in the global batch, `[batch]`, int32.
      dataset: its classes, the channels' mean and deviation, and what augmentation may do.
      settings: which augmentations to use.
      dtype: dtype of the images that are given.

    Returns:
      Images `[batch, h, w, c]` and labels, as `mix` gives them.
    """
    key_augment, key_mix = jax.random.split(key)
    images = augment(
        key_augment,
        images,
        index,
        settings,
        padding=dataset.crop_padding,
        flip=dataset.flip,
        mean=dataset.mean,
    )
    images = normalize(images, dataset.mean, dataset.std, dtype)
    return mix(key_mix, images, labels, settings, num_classes=dataset.num_classes)


def mix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    settings: Augmentation,
    *,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image and label with its neighbour's, by mixup or cutmix; or does nothing.

    Images 0 and 1 are mixed with each other, 2 and 3, and so on; the last of an odd batch stays
    as it is. So pairs are the same however many devices share the batch, if each has an even
    number. Batches are in random order, so neighbours are strangers. As in the authors' code, one
    lambda from Beta(alpha, alpha) serves the whole batch, and one box:

    * mixup gives `lambda x + (1 - lambda) x'`, and the same for labels;
    * cutmix shows x' in a box of the image's shape whose area is `1 - lambda` of it before the
      border cuts it short; labels are weighted by the area that is seen.

    Args:
      key: typed PRNG key of the batch, the same on every device; not the key of `augment`.
      images: normalised images, `[batch, h, w, c]`, floating.
      labels: classes, `[batch]`, integer.
      settings: which augmentations to use.
      num_classes: number of classes.

    Returns:
      The images, mixed in float32 and rounded once to their own dtype, `[batch, h, w, c]`, and
      soft labels, `[batch, num_classes]`, float32. Both as they came, with labels still `[batch]`
      and integer, if `settings` has neither mixup nor cutmix.

    References:
      Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018,
      https://arxiv.org/abs/1710.09412

      Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: regularization strategy to train strong classifiers
      with localizable features", ICCV 2019, https://arxiv.org/abs/1905.04899
    """
    if not settings.mixes:
        return images, labels
    coin_key, weight_key, box_key = jax.random.split(key, 3)
    use_cutmix = settings.cutmix > 0
    if settings.mixup and settings.cutmix:
        use_cutmix = jax.random.bernoulli(coin_key, jnp.float32(0.5))
    alpha = jnp.where(use_cutmix, jnp.float32(settings.cutmix), jnp.float32(settings.mixup))
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=jnp.float32)
    height, width = images.shape[1:3]
    outside = ~cutmix_box(box_key, height, width, weight)
    seen = jnp.mean(outside, dtype=jnp.float32)
    keep = jnp.where(use_cutmix, outside.astype(jnp.float32), weight)[None, :, :, None]
    mixed = _blend(images.astype(jnp.float32), keep).astype(images.dtype)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return mixed, _blend(one_hot, jnp.where(use_cutmix, seen, weight))


def cutmix_box(key: jax.Array, height: int, width: int, weight: jax.Array) -> jax.Array:
    """Draws the box where cutmix shows the second image, `[height, width]`, bool.

    Its sides are the image's times `sqrt(1 - weight)`, rounded down, and its centre is uniform over
    the pixels; the border cuts it short.
    """
    size = jnp.array([height, width], jnp.int32)
    sides = (size.astype(jnp.float32) * jnp.sqrt(1 - weight)).astype(jnp.int32)
    return in_box(height, width, jax.random.randint(key, (2,), 0, size, jnp.int32), sides)


def _blend(rows: jax.Array, keep: jax.Array) -> jax.Array:
    """Blends neighbouring rows, `[batch, ...]`: `keep` of its own and `1 - keep` of the other."""
    even = len(rows) - len(rows) % 2
    # Not by an index: so the batch stays divided where it is divided among devices.
    pairs = rows[:even].reshape(-1, 2, *rows.shape[1:])
    others = jnp.concatenate([pairs[:, ::-1].reshape(rows[:even].shape), rows[even:]])
    return keep * rows + (1 - keep) * others
