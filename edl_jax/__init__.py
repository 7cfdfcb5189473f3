"""Evolutionary Dynamic Loss in JAX: evolve a classification loss, then train with it."""

import ast
import importlib
from importlib import resources
from typing import Any

# Names are loaded when first asked for: importing evosax starts JAX's backend, and several
# processes must have joined (`edl_jax.runs.joining`) before that.
_STUB = ast.parse((resources.files(__name__) / "__init__.pyi").read_text())
_IMPORTS = [statement for statement in _STUB.body if isinstance(statement, ast.ImportFrom)]
_HOMES = {name.name: str(each.module) for each in _IMPORTS for name in each.names}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
