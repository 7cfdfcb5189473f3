"""Signals: SIGTERM, the notice that a machine is about to be taken away, and Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

# What ends a process, and how a fresh Python takes it. Ctrl-C last: given back last, it finds all
# others given back when it raises.
_DEADLY = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


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
    """Let Ctrl-C and SIGTERM wait for the end of the block, which they would leave half done.

    Only where they do what Python does by default, in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    deferred = [x for x, handler in _DEADLY.items() if signal.getsignal(x) is handler]
    try:
        for each in deferred:
            signal.signal(each, lambda number, _: came.append(number))
        yield
    finally:
        for each in deferred:
            signal.signal(each, _DEADLY[each])
        for each in deferred:
            if each in came:
                signal.raise_signal(each)
