"""Signals: SIGTERM, the notice that a machine is about to be taken away, and Ctrl-C."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_REFUSED = 2  # what was asked for cannot be done, as of argparse
EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: the same command, given again, resumes
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
_SECONDS_AT_ONCE = 1.0  # signals closer together than this count as one request


class Terminated(KeyboardInterrupt):
    """SIGTERM, where `stop_once` has it end the command as Ctrl-C does."""


def exit_status(stop: KeyboardInterrupt) -> int:
    """The status with which a command ends that a signal stopped."""
    return EXIT_PREEMPTED if isinstance(stop, Terminated) else EXIT_INTERRUPTED


def stop_once() -> None:
    """Let the first SIGINT or SIGTERM of a process end it in order, and a late second one at once.

    The first is raised as `KeyboardInterrupt` or `Terminated`, so that files half written are
    removed. What comes within a second is the same wish, from a wrapper and a terminal.
    """
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if time.monotonic() - first[0] > _SECONDS_AT_ONCE:
            os._exit(128 + number)

    _handle(stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # of a closed terminal
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def stop_silently() -> None:
    """Let SIGINT and SIGTERM end a process, which is ending by itself, without a traceback."""
    _handle(signal.SIG_DFL)


def _handle(how: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # such as of a job in the background
            signal.signal(number, how)


@contextlib.contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block, which they would leave half done."""
    came = []
    try:
        # Ctrl-C last: given back last, it finds the other given back when it raises.
        with noticed(signal.SIGTERM, signal.SIGINT) as came:
            yield
    finally:
        for each in sorted({*came}, reverse=True):  # SIGTERM, SIGINT
            signal.raise_signal(each)


@contextlib.contextmanager
def noticed(*numbers: signal.Signals) -> Iterator[list[int]]:
    """Collect signals instead of heeding them: in the main thread, where they are not ignored."""
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in numbers if is_main}
    if before.get(signal.SIGTERM, signal.SIG_DFL) is None:  # of JAX, and cannot be given back
        before[signal.SIGTERM] = signal.SIG_DFL
    taken = {each: how for each, how in before.items() if how not in (signal.SIG_IGN, None)}
    try:
        for each in taken:
            signal.signal(each, lambda number, _: came.append(number))
        yield came
    finally:
        for each, how in taken.items():
            signal.signal(each, how)
