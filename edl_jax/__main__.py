"""The `edl` command: get huge pages, meet the other processes if there are any, load the rest.

Loading evosax starts JAX's backend, and after that no process can join others.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from edl_jax.errors import ConfigError, EDLError
from edl_jax.runs.huge_pages import restart_with_huge_pages
from edl_jax.runs.preemption import exit_status, stop_once


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edl COMMAND [ARGUMENTS]`; returns the exit status (see `edl_jax.cli.main`)."""
    is_command = argv is None
    if argv is None:
        restart_with_huge_pages()
        argv = sys.argv[1:]
    argv = list(argv)
    from edl_jax.runs.devices import check_backend
    from edl_jax.runs.joining import Processes  # loads JAX
    from edl_jax.runs.processes import leave

    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
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
    try:
        processes = Processes(**vars(parser.parse_known_args(argv)[0]))
        if processes.several and argv[:1] not in (["pretrain"], ["train"]):
            command = argv[0] if argv else ""
            raise ConfigError(
                f"edl {command} runs in one process; pretrain and train take several."
            )
    except EDLError as error:
        print(f"edl: {error}", file=sys.stderr)
        return 2
    try:
        processes.join()
        check_backend()
    except EDLError as error:
        print(f"edl: {error}", file=sys.stderr)
        if processes.several:
            leave(2)
        return 2
    if is_command and not processes.several:  # a process that waits for others is blind to signals
        stop_once()
    try:
        try:
            from edl_jax.cli import main as run  # takes seconds

            status = run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt as stop:  # before there is a run to tell of
        print("\nedl: stopped.", file=sys.stderr)
        status = exit_status(stop)
    if status and processes.several:
        leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
