"""The `edl` command: get huge pages, meet the other processes if there are any, load the rest.

Loading evosax starts JAX's backend, and after that no process can join others.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs.huge_pages import restart_with_huge_pages
from edl_jax.runs.preemption import EXIT_REFUSED, exit_status, stop_once, stop_silently
from edl_jax.runs.streams import Lenient


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edl COMMAND [ARGUMENTS]`; returns the exit status (see `edl_jax.cli.main`).

    Output that cannot be written ends no run; the status says so, unless a reader is gone.
    """
    for name in ("stdin", "stdout", "stderr"):  # or a file takes the place of a closed one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    out: Any = Lenient(sys.stdout)
    err: Any = Lenient(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _run(argv)
        out.flush()
        if out.error and getattr(out.error, "errno", None) not in (errno.EPIPE, errno.EIO):
            print(f"edl: output was lost ({out.error}). Send it where there is room.", file=err)
            status = status or EXIT_REFUSED
    for stream in (out, err):
        if isinstance(stream.error, OSError):  # or Python fails to write the rest as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def _run(argv: Sequence[str] | None) -> int:
    is_command, several, interrupt = argv is None, False, signal.getsignal(signal.SIGINT)
    try:
        if is_command:
            if interrupt != signal.SIG_IGN:  # libraries may replace the handler as they load
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            restart_with_huge_pages()
        argv = list(sys.argv[1:] if argv is None else argv)
        try:  # JAX reads its settings as it loads
            from edl_jax.arguments import common
            from edl_jax.runs.devices import check_backend
        except ValueError as error:
            raise EDLError(
                f"JAX cannot be loaded ({error}). Unset that environment variable (the flag in "
                "capitals), or give it another value."
            ) from error
        processes = common(argv).processes
        if processes.several and argv[:1] not in (["pretrain"], ["train"]):
            raise ConfigError(
                f"edl {argv[0]} runs in one process; pretrain and train take several."
            )
        several = processes.several
        processes.join()
        check_backend()
        from edl_jax.cli import main as run  # takes seconds

        if is_command:
            signal.signal(signal.SIGINT, interrupt)
            if not several:  # a process that waits for others is blind to signals
                stop_once()
        status = run(argv)
    except EDLError as error:
        print(f"edl: {error}", file=sys.stderr)
        status = EXIT_REFUSED
    except KeyboardInterrupt as stop:  # before there is a run to tell of
        print("\nedl: stopped.", file=sys.stderr)
        status = exit_status(stop)
    finally:
        if is_command and not several:
            stop_silently()
    if status and several:
        from edl_jax.runs.processes import leave

        leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
