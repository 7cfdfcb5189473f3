"""A limit on the size of files, which makes writes fail as a full disk does."""

import contextlib
import resource
import sys
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Nothing that is written within grows beyond `size` bytes; no bytecode is cut off by that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mock.patch.object(sys, "dont_write_bytecode", True):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
