"""The `edl` command: get huge pages, meet the other processes if there are any, load the rest.

Loading evosax starts JAX's backend, and after that no process can join others.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs.huge_pages import restart_with_huge_pages
from edl_jax.runs.preemption import EXIT_REFUSED, exit_status, stop_once, stop_silently


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edl COMMAND [ARGUMENTS]`; returns the exit status (see `edl_jax.cli.main`)."""
    is_command, several, interrupt = argv is None, False, signal.getsignal(signal.SIGINT)
    try:
        if argv is None:
            if interrupt != signal.SIG_IGN:  # libraries, as they load, make of it what they like
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            restart_with_huge_pages()
            argv = sys.argv[1:]
        argv = list(argv)
        options = _of_processes(argv)
        try:
            from edl_jax.runs.devices import check_backend  # loads JAX, which reads its settings
        except ValueError as error:
            raise EDLError(
                f"JAX cannot be loaded ({error}). Unset that environment variable (the flag in "
                "capitals), or give it another value."
            ) from error
        from edl_jax.runs.joining import Processes

        processes = Processes(**options)
        if processes.several and argv[:1] not in (["pretrain"], ["train"]):
            command = argv[0] if argv else ""
            raise ConfigError(
                f"edl {command} runs in one process; pretrain and train take several."
            )
        several = processes.several
        processes.join()
        check_backend()
        try:
            from edl_jax.cli import main as run  # takes seconds

            if is_command:
                signal.signal(signal.SIGINT, interrupt)
                if not several:  # a process that waits for others is blind to signals
                    stop_once()
            status = run(argv)
        finally:
            sys.stdout.flush()
    except EDLError as error:
        print(f"edl: {error}", file=sys.stderr)
        status = EXIT_REFUSED
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
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


def _of_processes(argv: Sequence[str]) -> dict[str, Any]:
    """What is said of the processes of the run."""
    parser = argparse.ArgumentParser(
        "edl",
        "edl COMMAND [ARGUMENTS]; edl COMMAND --help explains each argument",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--processes.auto", dest="auto", action="store_true")
    parser.add_argument("--processes.coordinator", dest="coordinator")
    parser.add_argument(
        "--processes.num-processes", "--processes.num_processes", dest="num_processes", type=int
    )
    parser.add_argument(
        "--processes.process-id", "--processes.process_id", dest="process_id", type=int
    )
    parser.add_argument("--processes.timeout", dest="timeout", type=float)
    return vars(parser.parse_known_args(argv)[0])


if __name__ == "__main__":
    sys.exit(main())
