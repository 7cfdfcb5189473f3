"""One run at a time in a folder."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edl_jax.errors import RunFolderError
from edl_jax.runs.storage import check_regular, make_folder

LOCK = ".lock"  # the name of the file that is locked


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder, which is made if it is not there.

    The system releases the lock when the process ends, however it ends. It holds between hosts
    where the file system's `flock` does, as NFS's does. A `RunFolderError` names the host and
    process of the run that has the folder.
    """
    path = folder / LOCK
    try:
        make_folder(folder)
        if path.exists():
            check_regular(path)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written ({error}); choose another folder, or give the same "
            "command again once it can."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{folder} is in use by {_owner(file)}: wait until it ends, stop it, or choose "
                "another folder."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be locked against other runs ({error}); choose a folder on "
                "another file system."
            ) from error
        since = datetime.datetime.now().isoformat(" ", "seconds")
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        with contextlib.suppress(OSError):  # a full disk: who it is cannot be told, no more
            file.seek(0)
            file.truncate()
            file.write(json.dumps(owner) + "\n")
            file.flush()
        yield


def _owner(file: IO[str]) -> str:
    try:
        owner = json.loads(file.read())
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is only just writing who it is
        return "another process"
