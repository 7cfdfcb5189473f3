"""Images by their class, from which few-shot tasks are drawn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.data.datasets import Dataset
from edl_jax.errors import ConfigError


class ByClass(NamedTuple):
    """Images of some classes."""

    images: jax.Array  # `[n, height, width, channels]` uint8
    rows: jax.Array  # the rows of each class's images, filled up, `[classes, most]` int32
    counts: jax.Array  # how many each class has, `[classes]` int32

    def task(self, key: jax.Array, ways: int, size: int) -> jax.Array:
        """Different images of different classes, in random order, `[ways, size, h, w, c]` uint8."""
        key_classes, key_rows = jax.random.split(key)
        classes = jax.random.permutation(key_classes, len(self.rows))[:ways]
        lots = jax.random.uniform(key_rows, (ways, self.rows.shape[1]), jnp.float32)
        is_image = jnp.arange(self.rows.shape[1]) < self.counts[classes, None]
        _, drawn = jax.lax.top_k(jnp.where(is_image, lots, -1.0), size)
        return self.images[self.rows[classes[:, None], drawn]]


def by_class(dataset: Dataset, split: str, classes: range, needed: int) -> ByClass:
    """The images of these classes in the split "train" or "test", `needed` of each at least."""
    images, labels = (getattr(dataset, f"{split}_{x}") for x in ("images", "labels"))
    rows = [np.flatnonzero(labels == each) for each in classes]
    counts = np.asarray([*map(len, rows)], np.int32)
    if min(counts) < needed:
        name = dataset.class_names[classes[int(np.argmin(counts))]]
        raise ConfigError(
            f"a task takes {needed} images of a class, and {dataset.name} has {min(counts)} of "
            f"{name!r} in its {split} part; expected fewer shots or queries, or more images."
        )
    filled = np.stack([np.resize(each, max(counts)) for each in rows]).astype(np.int32)
    return ByClass(*map(jnp.asarray, (images, filled, counts)))
