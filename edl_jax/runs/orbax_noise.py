"""What Orbax prints of failures that it raises as well."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def orbax_silent() -> Iterator[None]:
    """Keep Orbax's threads from printing tracebacks: the caller reports what they raise.

    After a failure they are kept silent for good: some end later, and find the loop closed in which
    they were to read or write.
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
        for logger in loggers:
            logger.addFilter(_not_of_orbax)
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


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return not {"asyncio", "orbax"} & set(Path(record.pathname).parts)


def _nothing(record: logging.LogRecord) -> bool:
    del record
    return False
