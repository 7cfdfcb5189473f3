"""One run at a time in a folder."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from edl_jax.errors import RunFolderError
from edl_jax.runs.storage import check_regular, make_folder, refused

LOCK = ".lock"  # the name of the file that is locked, which says by whom


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder, which is made if it is not there.

    The system releases the lock when the process ends, however it ends. It holds between hosts
    where the file system's `flock` does, as NFS's does.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as stack:
        with refused(
            f"{folder} cannot be written or locked",
            "Choose another folder, or give the same command again once it can.",
        ):
            make_folder(folder)
            if path.exists():
                check_regular(path)
            file = stack.enter_context(path.open("a+", errors="replace"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(200).strip() or "another process"  # that is just writing it
                raise RunFolderError(
                    f"{folder} is in use by {owner}: wait until it ends, stop it, or choose "
                    "another folder."
                ) from None
        since = datetime.datetime.now().isoformat(" ", "seconds")
        with contextlib.suppress(OSError):  # a full disk: who it is cannot be told, no more
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
        yield
