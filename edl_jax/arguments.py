"""What commands take, read from the command line and from configuration files."""

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import tyro

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs.joining import Processes
from edl_jax.runs.storage import user_path

Config = TypeVar("Config")
_Path = Annotated[str | None, tyro.conf.arg(metavar="PATH")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Generic[Config]):
    """A command's configuration, and what every command that has one takes besides it."""

    config: _Path = None
    """Python file with a `get_config()`; the other arguments override what it gives."""
    run_dir: _Path = None
    """Run folder, where a run of the same settings resumes; default: runs/COMMAND-DATE-TIME."""
    quiet: bool = False
    """Print only errors, and the run folder if the command chose it."""
    processes: Processes = Processes()
    """How to find the other processes of the run (pretrain and train)."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepArguments(Arguments[Config]):
    """What the commands take that run many cells."""

    executor: str | None = None
    """Where trainings or evolutions run: a number of processes, or dask://HOST:PORT for a Dask
    cluster (default: one process a core on a CPU, this process on an accelerator)."""


def common(argv: Sequence[str]) -> Arguments[None]:
    """Parse the arguments that all commands share; `parse` reports what is wrong with them."""
    kind: Any = Arguments[tyro.conf.Suppress[tyro.conf.Fixed[None]]]
    nothing, silent = Arguments(settings=None), {"add_help": False, "console_outputs": False}
    options: Any = {"default": nothing, "return_unknown_args": True, **silent}
    try:
        return tyro.cli(kind, args=argv, **options)[0]
    except SystemExit:
        return nothing


def parse(kind: Any, config_type: type[Any], argv: Sequence[str], prog: str, about: str) -> Any:
    """What is given to the command `prog`; `SystemExit` after help, or if the syntax is wrong."""
    if shutil.get_terminal_size().columns < 40:  # tyro hangs in narrower terminals
        os.environ["COLUMNS"] = "40"
    path, said = common(argv).config, io.StringIO()
    default = kind(settings=config_type() if path is None else load_config(path, config_type))
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


def load_config(path: str | os.PathLike[str], config_type: type[Config]) -> Config:
    """The configuration that a file's `get_config()` gives. Runs the file, as a script is run."""
    path = user_path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, also of a name that is too long
        raise ConfigError(f"there is no config file at {path}; see configs/ for examples.")
    file, folder = str(path.absolute()), str(path.absolute().parent)
    # One name for each file: two may be called the same, and each may import the other's classes.
    module = types.ModuleType(f"edl_config_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for a class
    sys.path.insert(0, folder)
    try:
        exec(compile(path.read_bytes(), file, "exec"), vars(module))
        get_config = getattr(module, "get_config", None)
        config = get_config() if get_config else None
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        kind = "" if isinstance(error, EDLError) else f"{type(error).__name__}: "
        raise ConfigError(
            f"{path} cannot be used{f' (line {lines[-1]})' if lines else ''}: {kind}{error}"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # the file may have changed the list itself
            sys.path.remove(folder)
    if not isinstance(config, config_type):
        found = f"gives {type(config).__name__}" if get_config else "has no get_config()"
        raise ConfigError(
            f"{path} {found}; expected a get_config() that returns a {config_type.__name__}."
        )
    return config
