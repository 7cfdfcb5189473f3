"""What commands take, read from the command line and from configuration files."""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import tyro

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs.joining import Processes
from edl_jax.runs.storage import user_path

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Arguments(Generic[Config]):
    """What every command takes besides its configuration."""

    settings: Annotated[Config, tyro.conf.arg(name="")]
    config: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Python file with a `get_config()`; the other arguments override what it gives."""
    run_dir: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Run folder, where a run of the same settings resumes; default: runs/COMMAND-DATE-TIME."""
    quiet: bool = False
    """Print nothing but errors, and the run folder where none was given."""
    processes: Processes = Processes()
    """How to find the other processes of the run (pretrain and train)."""


@dataclasses.dataclass(frozen=True)
class SweepArguments(Arguments[Config]):
    """What the commands take that run many cells."""

    executor: str | None = None
    """Where trainings or evolutions run: a number of processes, or dask://HOST:PORT for a Dask
    cluster (default: one process a core on a CPU, this process on an accelerator)."""


def parse(kind: Any, config_type: type[Any], argv: Sequence[str], prog: str, about: str) -> Any:
    """The arguments of the command `prog`, an `Arguments`, or what `kind` is, of a configuration.

    Raises `EDLError` if a value cannot work; and `SystemExit` after help is printed, or what is
    wrong with the arguments.
    """
    default, said = kind(_configured(argv, config_type)), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind[config_type], args=argv, default=default, prog=prog, description=about
            )
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None:  # a refusal of ours is one line, instead of tyro's box
            if isinstance(cause, EDLError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        print(said.getvalue(), file=sys.stderr, end="")
        raise


def processes_in(argv: Sequence[str]) -> Processes:
    """What a command line says of the processes of the run; what is wrong with it `parse` says."""

    @dataclasses.dataclass(frozen=True)
    class Part:
        processes: Processes = Processes()

    how = {"add_help": False, "console_outputs": False}
    try:
        return tyro.cli(Part, args=argv, return_unknown_args=True, **how)[0].processes
    except SystemExit:
        return Processes()


def _configured(argv: Sequence[str], config_type: type[Config]) -> Config:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")  # tyro refuses it without a value
    path = parser.parse_known_args(argv)[0].config
    return config_type() if path is None else load_config(path, config_type)


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
    sys.modules[name] = module  # where dataclasses and pickle look for the module of a class
    sys.path.insert(0, str(absolute.parent))
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(absolute)]
        if isinstance(error, SyntaxError) and error.filename == str(absolute):
            lines = [error.lineno]
        kind = "" if isinstance(error, EDLError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"{path} cannot be used{f' (line {lines[-1]})' if lines else ''}: {kind}{error}"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed the list itself
            sys.path.remove(str(absolute.parent))
    if not isinstance(config, config_type):
        has_one = hasattr(module, "get_config")
        found = f"gives {type(config).__name__}" if has_one else "has no get_config()"
        raise ConfigError(
            f"{path} {found}; expected a get_config() that returns a {config_type.__name__}."
        )
    return config
