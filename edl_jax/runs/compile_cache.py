"""Compiled programs, kept for the next run in a folder that only the user can write."""

import contextlib
import hashlib
import logging
import os
import platform
import stat
from pathlib import Path

import jax

from edl_jax.runs.storage import user_cache

_LOGGER = logging.getLogger(__name__)


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was told where to.

    They run as they are, so that nothing is kept where others could write; a line says so.
    """
    cache = user_cache()
    if jax.config.jax_compilation_cache_dir is not None or cache is None:  # pyright: ignore
        return
    folder = cache / "compiled" / _kind()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        for each, most in ((cache, 0o755), (folder.parent, 0o700), (folder, 0o700)):
            each.mkdir(mode=0o700, exist_ok=True)
            found = each.lstat()
            mode = stat.S_IMODE(found.st_mode)
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(f"{each} is no folder, or a link to one")
            if found.st_uid != os.geteuid() or mode & ~most:
                raise PermissionError(f"{each} belongs to user {found.st_uid}, with mode {mode:o}")
    except OSError as error:
        _LOGGER.warning(
            "Compiled programs are not kept (%s). Make that a folder of your own, closed to "
            "others, or set JAX_COMPILATION_CACHE_DIR to one.",
            error,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _kind() -> str:
    """A name for programs that run here: XLA's for a CPU run on its like only."""
    about = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about += next(line for line in lines if line.startswith("flags"))
    return f"jax-{jax.__version__}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"
