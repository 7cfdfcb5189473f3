"""Learned losses, one file each: found by a search on the task, or learned while they train.

A method is a configuration: a frozen dataclass whose fields are its options. One that learns while
a classifier trains is a `LossMethod`; one that is searched for before that is a `SearchedLoss`.
"""

from edl_jax.losses.method import METHODS
from edl_jax.registry import load_parts

__all__ = ["METHODS"]
load_parts(__name__, METHODS)
