"""Files that are whole or absent, and that outlive the machine once they are written."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.preemption import interrupt_deferred

_ADDRESS = re.compile("[a-z][a-z0-9+.-]+:/")  # such as gs://..., in a Path gs:/...
TEMPORARY = ".edl-tmp"  # ends the name of what is being written or removed


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user gave it, with `~` expanded to the home folder; `ConfigError` if it is none.

    Orbax takes neither addresses such as `gs://...` nor names that are not in UTF-8.
    """
    with contextlib.suppress(TypeError, UnicodeEncodeError, RuntimeError):
        text = os.fspath(path)
        is_text = isinstance(text, str) and text.encode() and "\0" not in text
        if is_text and not _ADDRESS.match(text):
            return Path(text).expanduser()
    raise ConfigError(
        f"the path is {path!r}; expected a string or a pathlib.Path, not empty, in UTF-8, of this "
        "machine (copy or mount there what lies at an address), and after ~ a known home folder."
    )


def user_cache() -> Path | None:
    """`$XDG_CACHE_HOME` or `~/.cache`, `/edl_jax`; None for a user without a home."""
    try:
        return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "edl_jax"
    except ConfigError:
        return None


@contextlib.contextmanager
def refused(what: str, todo: str) -> Iterator[None]:
    """Raise a `RunFolderError` that says what cannot be done, and what to do, for an `OSError`."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{what} ({error}). {todo}") from error


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing; rename it at the end: never half a file."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with interrupt_deferred():
            os.replace(temporary, path)
            sync(path.parent)
    except BaseException:
        # Perhaps the second signal of two: the first must not leave the file behind.
        with interrupt_deferred(), contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, never half of it; Ctrl-C and SIGTERM wait until it is written."""
    with interrupt_deferred(), open_atomically(path) as file:
        file.write(data)


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is created if it is not there."""
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
    """Refuse a path that is not a regular file: opening a pipe would wait for its other end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder; expected a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a pipe, socket or device; expected a file")


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, of that mode, and its parents where they are missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode, parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Let what a file holds, or the names in a folder, outlive the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Let a folder, all that is in it, and its own name outlive the machine."""
    with ThreadPoolExecutor() as pool:  # a disk syncs many in little more than the time of one
        list(pool.map(sync, [path, *path.rglob("*")]))
    sync(path.parent)


def remove_temporary(path: Path) -> None:
    """Remove what killed processes were writing or removing in a folder, not in those in it."""
    for left in path.glob(f".*{TEMPORARY}"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
