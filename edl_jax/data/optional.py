"""Optional dependencies, imported when they are first needed."""

import importlib
from typing import Any

from edl_jax.errors import DataError


class UnavailableError(DataError):
    """A data set cannot be had here; with "auto", another takes its place."""


def require(module: str) -> Any:
    """Import a module of the `data` extra, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f'{error}: pip install "edl_jax[data]"') from error
