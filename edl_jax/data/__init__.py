"""Images to train on: data sets by name or from arrays, label noise, imbalance, augmentation."""

from edl_jax.data.augmentation import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.data.sources import DATASETS, ArraySource
from edl_jax.registry import load_parts

__all__ = ["DATASETS", "ArraySource", "Augmentation", "DataConfig"]
load_parts(__name__, DATASETS)
