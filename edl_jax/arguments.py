"""What commands take, and how it is read from the command line."""

import argparse
import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import tyro

from edl_jax.config_files import load_config
from edl_jax.errors import EDLError
from edl_jax.runs.joining import Processes

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
    """The arguments of a command.

    Args:
      kind: `Arguments` or `SweepArguments`.
      config_type: of their settings.
      argv: what follows the command.
      prog: how the command is called.
      about: what it does.

    Raises:
      EDLError: if a value cannot work.
      SystemExit: after help is printed, or what is wrong with the arguments.
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


def _configured(argv: Sequence[str], config_type: type[Config]) -> Config:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")  # tyro refuses it without a value
    path = parser.parse_known_args(argv)[0].config
    return config_type() if path is None else load_config(path, config_type)
