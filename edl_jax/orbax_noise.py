"""What Orbax prints of failures that it raises as well."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any


@contextlib.contextmanager
def orbax_silent() -> Iterator[None]:
    """Keep Orbax's threads from printing tracebacks: the caller reports what they raise.

    After a failure asyncio is kept silent for good: what was still to be read or written may end
    later, in a loop that Orbax has closed by then.
    """
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    after = hook
    for logger in loggers:
        logger.addFilter(_nothing)
    sys.unraisablehook = lambda _: None
    try:
        yield
    except BaseException:
        after = partial(_unless_of_asyncio, hook)
        raise
    finally:
        sys.unraisablehook = after
        for logger in loggers:
            logger.removeFilter(_nothing)


def _unless_of_asyncio(show: Callable[[Any], Any], unraisable: Any) -> None:
    """Show what nobody could be told of, but for what asyncio itself raised."""
    frames = [frame for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    if not (frames and frames[-1].f_globals.get("__name__", "").startswith("asyncio.")):
        show(unraisable)


def _nothing(record: logging.LogRecord) -> bool:
    del record
    return False
