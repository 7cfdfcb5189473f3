"""Files that are whole or absent, and that outlive the machine once they are written."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from edl_jax.errors import ConfigError
from edl_jax.runs.preemption import interrupt_deferred

# Can only be read by setting it, which other threads would notice: once, at import.
_UMASK = os.umask(0)
os.umask(_UMASK)
_TEMPORARY = ".edl-tmp"  # ends the name of a file that is being written


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user gave it, with `~` expanded to the home folder.

    Raises:
      ConfigError: if it is no path, is empty, cannot be encoded, or its home folder is not known.
    """
    try:
        given = os.fspath(path)
        if not isinstance(given, str):
            raise TypeError
        if not given or "\0" in given:
            raise ConfigError(f"the path is {path!r}; expected a path of at least one character.")
        os.fsencode(given)
        return Path(given).expanduser()
    except TypeError as error:
        raise ConfigError(f"the path is {path!r}; expected a string or a pathlib.Path.") from error
    except UnicodeEncodeError as error:
        raise ConfigError(f"the path is {path!r}, which no file system can hold.") from error
    except RuntimeError as error:
        raise ConfigError(f"the path is {path!r}, whose home folder is not known.") from error


def user_cache() -> Path | None:
    """The user's cache folder of this package: `$XDG_CACHE_HOME` or `~/.cache`, `/edl_jax`.

    None for a user without a home.
    """
    try:
        return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "edl_jax"
    except ConfigError:
        return None


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing; rename it at the end: never half a file.

    Raises:
      OSError: if it cannot be written; `path` is then as it was, as after any exception.
    """
    make_folder(path.parent)
    temporary = None
    try:
        with interrupt_deferred():
            handle, temporary = tempfile.mkstemp(_TEMPORARY, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # as any new file; mkstemp's are private
        with interrupt_deferred():
            os.replace(temporary, path)
            sync(path.parent)
    except BaseException:
        # Perhaps the second signal of two: the first must not leave the file behind.
        with interrupt_deferred(), contextlib.suppress(FileNotFoundError):
            if temporary is not None:
                os.unlink(temporary)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename it: never half a file.

    Ctrl-C and SIGTERM wait until it is written.

    Raises:
      OSError: if it cannot be written; `path` is then as it was.
    """
    with interrupt_deferred(), open_atomically(path) as file:
        file.write(data)


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is created if it is not there; both outlive the machine.

    Raises:
      OSError: if it cannot be written, or is no regular file.
    """
    is_new = not path.exists()
    if not is_new:
        check_regular(path)
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def check_regular(path: Path) -> None:
    """Refuse a path that is not a regular file: opening a pipe would wait for its other end.

    Raises:
      OSError: if it is none, or is not there.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder; expected a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a pipe, socket or device; expected a file")


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and its parents where they are missing, so that they outlive the machine.

    Args:
      path: the folder.
      mode: what it is made with, less the umask; its parents get the usual one.

    Raises:
      OSError: if one cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode, parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Let what a file holds, or the names in a folder, outlive the machine.

    Raises:
      OSError: if it cannot be opened or synced.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Let a folder, all that is in it, and its own name outlive the machine.

    Raises:
      OSError: if something cannot be opened or synced.
    """
    with ThreadPoolExecutor() as pool:  # a disk syncs many in little more than the time of one
        list(pool.map(sync, [path, *path.rglob("*")]))
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder: a kill leaves it whole, or under a name that `sweep` looks for.

    Raises:
      OSError: if it cannot be removed.
    """
    doomed = path.with_name(f".{path.name}{_TEMPORARY}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def sweep(path: Path) -> None:
    """Remove what killed processes were writing or removing in a folder, not in those in it.

    Raises:
      OSError: if something cannot be removed.
    """
    for left in path.glob(f".*{_TEMPORARY}"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
