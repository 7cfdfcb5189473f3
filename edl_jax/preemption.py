"""Signals: SIGTERM, the notice that a machine is about to be taken away, and Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def sigterm_noticed() -> Iterator[Callable[[], bool]]:
    """Notice SIGTERM instead of dying of it.

    Gives a function that says whether it has come. Only the main thread can take signals; in
    another one nothing is noticed, and SIGTERM does what it did before.
    """
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noticed.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
    try:
        yield noticed.is_set
    finally:
        # None: a handler that is not Python's, and cannot be given back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, which it would leave half done.

    Only where it is Python's own, in the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    noticed = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: noticed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noticed.is_set():
        raise KeyboardInterrupt
