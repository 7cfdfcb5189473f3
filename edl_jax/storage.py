"""Files that are whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edl_jax.errors import ConfigError

# Can only be read by setting it, which other threads would notice: once, at import.
_UMASK = os.umask(0)
os.umask(_UMASK)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user gave it, with `~` expanded to the home folder.

    Raises:
      ConfigError: if it is no path, is empty, or its home folder is not known.
    """
    try:
        given = os.fspath(path)
        if not isinstance(given, str) or not given or "\0" in given:
            raise ConfigError(f"the path is {path!r}; expected a path of at least one character.")
        return Path(given).expanduser()
    except TypeError as error:
        raise ConfigError(f"the path is {path!r}; expected a string or a pathlib.Path.") from error
    except RuntimeError as error:
        raise ConfigError(f"the path is {path!r}, whose home folder is not known.") from error


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing; rename it at the end: never half a file.

    Raises:
      OSError: if it cannot be written; `path` is then as it was, as after any exception.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # as any new file; mkstemp's are private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename it: never half a file.

    Raises:
      OSError: if it cannot be written; `path` is then as it was.
    """
    with open_atomically(path) as file:
        file.write(data)
