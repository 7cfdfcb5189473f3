"""What Orbax prints of failures that it raises as well."""

import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def orbax_silent() -> Iterator[None]:
    """Keep Orbax's threads from printing tracebacks: the caller reports what they raise."""
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    for logger in loggers:
        logger.addFilter(_nothing)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    del record
    return False
