"""Compiled programs, kept for the next run in a folder that only the user can write."""

import contextlib
import glob
import hashlib
import logging
import os
import platform
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import jax

from edl_jax.runs.storage import user_cache

_LOGGER = logging.getLogger(__name__)
_UNREADABLE = re.compile("Error reading persistent compilation cache entry for '(.*?)'")


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told where to.

    What is kept there runs as it is, so the folder must be the user's own, and closed to all
    others; if it is not, nothing is kept, and a line says so.
    """
    cache = user_cache()
    if jax.config.jax_compilation_cache_dir is not None or cache is None:  # pyright: ignore
        return
    folder = cache / "compiled" / _kind()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        for each, most in ((cache, 0o755), (folder.parent, 0o700), (folder, 0o700)):
            each.mkdir(mode=0o700, exist_ok=True)
            status = each.lstat()
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(f"{each} is no folder, or a link to one")
            if status.st_uid != os.geteuid() or mode & ~most:
                raise PermissionError(f"{each} belongs to user {status.st_uid}, with mode {mode:o}")
    except OSError as error:
        _LOGGER.warning(
            "Compiled programs are not kept (%s). Make that a folder of your own, closed to "
            "others, or set JAX_COMPILATION_CACHE_DIR to one.",
            error,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1:  # pyright: ignore
        # JAX's default, which a default run has many programs below.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    _replace_unreadable(folder)


def _kind() -> str:
    """A name for programs that run here: XLA's for a CPU run on its like only."""
    about = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about += next(line for line in lines if line.startswith("flags"))
    return f"jax-{jax.__version__}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def _replace_unreadable(folder: Path) -> None:
    """Remove the entries that JAX warns of: it compiles again, but never writes over an entry."""
    show = warnings.showwarning

    def remove_or_show(message: Warning | str, *arguments: Any, **options: Any) -> None:
        if (named := _UNREADABLE.match(str(message))) is None:
            return show(message, *arguments, **options)
        for entry in folder.glob(f"{glob.escape(named[1])}-*"):
            with contextlib.suppress(OSError):
                entry.unlink()

    warnings.filterwarnings("always", _UNREADABLE.pattern)  # each time, not each text once
    warnings.showwarning = remove_or_show
