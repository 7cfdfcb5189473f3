"""Learned losses, one file each: found by a search on the task, or learned while they train.

A method is a configuration: a frozen dataclass whose fields are its options. Those that are learned
while a classifier trains are `LossMethod`s; those that are searched for before are `SearchedLoss`es.
"""

from edl_jax.losses.method import METHODS
from edl_jax.registry import load_parts

__all__ = ["METHODS"]
load_parts(__name__, METHODS)
