"""Image augmentation as pure functions that run on the device, on batches; see `prepare`."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jax.typing import ArrayLike, DTypeLike

from edl_jax.checked import Checked, NotNegative
from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Augmentation(Checked):
    """Augmentation of the training images. Raises ConfigError, which names the invalid field.

    With both mixup and cutmix on, a fair coin picks one of them for each batch.
    """

    crop: bool = True
    """Crop images at random after padding them with black, if the data set defines a padding."""
    flip: bool = True
    """Mirror half of the images, if mirrored images of the data set keep their meaning."""
    cutout: Annotated[int, Ge(0)] = 0
    """Side length in pixels of a square cut out of every image (0 disables cutout)."""
    mixup: NotNegative = 0.0
    """Alpha of the Beta(alpha, alpha) distribution of mixup's weight (0 disables mixup)."""
    cutmix: NotNegative = 0.0
    """Alpha of the Beta(alpha, alpha) distribution of cutmix's area (0 disables cutmix)."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that labels are soft."""
        return self.mixup > 0 or self.cutmix > 0


def prepare(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    dataset: Dataset,
    settings: Augmentation,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """A batch as the model and the loss see it: augmented, normalized and mixed.

    The key, typed, is the batch's and the same on every device.
    """
    key_augment, key_mix = jax.random.split(key)
    images = augment(key_augment, images, index, settings, dataset)
    images = normalize(images, dataset.mean, dataset.std, dtype)
    return mix(key_mix, images, labels, settings, dataset.num_classes)


def normalize(
    images: jax.Array, mean: ArrayLike, std: ArrayLike, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """`(images / 255 - mean) / std` per channel in float32, rounded once to `dtype`."""
    mean = jnp.asarray(mean, jnp.float32)[None, None, None, :]
    std = jnp.asarray(std, jnp.float32)[None, None, None, :]
    return ((images.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)


def augment(
    key: jax.Array, images: jax.Array, index: jax.Array, settings: Augmentation, dataset: Dataset
) -> jax.Array:
    """Crops, mirrors and cuts a square out of every image, `[batch, h, w, c]`, uint8.

    Crops and flips are those of He et al. (2016) for CIFAR-10; the padding is black (pixel 0), as
    it is before normalization. An image's choices depend on `key` and on its own `index`, its place
    in the global batch, only: so they do not change with the number of devices that share a batch.
    """
    height, width, _ = images.shape[1:]
    if settings.cutout > min(height, width):
        raise ConfigError(
            f"Augmentation.cutout is {settings.cutout} with images of {height} x {width} pixels; "
            f"expected at most {min(height, width)}."
        )
    # One draw an image for all choices, a word each: the remainders are uniform to 1e-8. A new
    # choice takes words behind these, which stay as they are.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    words = jax.vmap(lambda key: jax.random.bits(key, (5,), jnp.uint32))(keys)
    padding = dataset.crop_padding
    if settings.crop and padding:
        offsets = (words[:, :2] % (2 * padding + 1)).astype(jnp.int32)
        sides = (padding, padding)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        shape = images.shape[1:]
        starts = jnp.pad(offsets, ((0, 0), (0, 1)))
        images = jax.vmap(lambda x, start: jax.lax.dynamic_slice(x, start, shape))(padded, starts)
    if settings.flip and dataset.flip:
        mirrored = (words[:, 2] >> 31 == 1)[:, None, None, None]
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if settings.cutout:
        # DeVries and Taylor (2017): centers are uniform over the pixels and squares may reach over
        # the border, which matters. Filled with the mean, which is 0 after normalization.
        centers = (words[:, 3:] % jnp.array([[height, width]], jnp.uint32)).astype(jnp.int32)
        color = jnp.round(jnp.asarray(dataset.mean, jnp.float32) * 255).astype(images.dtype)
        sides = jnp.full(2, settings.cutout, jnp.int32)
        inside = jax.vmap(lambda center: _in_box(height, width, center, sides))(centers)
        images = jnp.where(inside[..., None], color[None, None, None, :], images)
    return images


def mix(
    key: jax.Array, images: jax.Array, labels: jax.Array, settings: Augmentation, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image and label with its neighbor's, by mixup or cutmix; or does nothing.

    Images 0 and 1 are mixed with each other, 2 and 3, and so on; the last of an odd batch stays
    as it is. So pairs are the same however many devices share the batch, if each has an even
    number; batches are in random order, so neighbors are strangers. As in the authors' code, one
    lambda from Beta(alpha, alpha) serves the whole batch, and one box:

    * mixup (Zhang et al. 2018) gives `lambda x + (1 - lambda) x'`, and the same for labels;
    * cutmix (Yun et al. 2019) shows x' in a box of the image's shape whose area is `1 - lambda` of
      it before the border cuts it short; labels are weighted by the area that is seen.

    Images are mixed in float32 and rounded once to their own dtype; labels become soft,
    `[batch, num_classes]`, float32.
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
    """Where cutmix shows the second image, `[height, width]`, bool."""
    size = jnp.array([height, width], jnp.int32)
    sides = (size.astype(jnp.float32) * jnp.sqrt(1 - weight)).astype(jnp.int32)
    return _in_box(height, width, jax.random.randint(key, (2,), 0, size, jnp.int32), sides)


def _in_box(height: int, width: int, center: jax.Array, sides: jax.Array) -> jax.Array:
    """Where a box lies that the border cuts short; of even sides more lies before the center."""
    first = center - sides // 2
    rows = jnp.arange(height, dtype=jnp.int32) - first[0]
    columns = jnp.arange(width, dtype=jnp.int32) - first[1]
    in_rows = (rows >= 0) & (rows < sides[0])
    in_columns = (columns >= 0) & (columns < sides[1])
    return in_rows[:, None] & in_columns[None, :]


def _blend(rows: jax.Array, keep: jax.Array) -> jax.Array:
    """Blends neighboring rows, `[batch, ...]`: `keep` of its own and `1 - keep` of the other."""
    even = len(rows) - len(rows) % 2
    # Not by an index: so the batch stays divided where it is divided among devices.
    pairs = rows[:even].reshape(-1, 2, *rows.shape[1:])
    others = jnp.concatenate([pairs[:, ::-1].reshape(rows[:even].shape), rows[even:]])
    return keep * rows + (1 - keep) * others
