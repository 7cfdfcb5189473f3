"""Configurations from Python files."""

import contextlib
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs.storage import user_path

Config = TypeVar("Config")


def load_config(path: str | os.PathLike[str], config_type: type[Config]) -> Config:
    """The configuration that a file's `get_config()` gives. Runs the file.

    As of a script, its folder comes first where modules are looked for, as long as it runs.

    Raises:
      ConfigError: if there is no such file, it fails, or it gives no `config_type`.
    """
    path = user_path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, also of a name that is too long
        raise ConfigError(f"there is no config file at {path}; see configs/ for examples.")
    absolute = path.absolute()  # as it is called in a traceback
    # One name for each file: two may be called the same, and each may import the other's classes.
    name = f"edl_config_{hashlib.sha256(os.fsencode(absolute)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, absolute)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; expected one with a get_config().")
    module = importlib.util.module_from_spec(spec)
    try:
        with _as_script(module, absolute.parent):
            spec.loader.exec_module(module)
            config = module.get_config() if hasattr(module, "get_config") else None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(absolute)]
        if isinstance(error, SyntaxError) and error.filename == str(absolute):
            lines = [error.lineno]
        kind = "" if isinstance(error, EDLError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"{path} cannot be used{f' (line {lines[-1]})' if lines else ''}: {kind}{error}"
        ) from error
    if not isinstance(config, config_type):
        has_one = hasattr(module, "get_config")
        found = f"gives {type(config).__name__}" if has_one else "has no get_config()"
        raise ConfigError(
            f"{path} {found}; expected a get_config() that returns a {config_type.__name__}."
        )
    return config


@contextlib.contextmanager
def _as_script(module: ModuleType, folder: Path) -> Iterator[None]:
    """Let a module be found by its name, from now on, and its neighbours by theirs, in the block.

    Dataclasses, `typing.get_type_hints` and pickle look in `sys.modules` for where a class is from.
    """
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    try:
        yield
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed the list itself
            sys.path.remove(str(folder))
