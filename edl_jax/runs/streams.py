"""Standard output and error that may be closed, full or gone, and end no run by that."""

import io
import os
import sys
from typing import Any


class Lenient:
    """A text stream of which what cannot be written is lost; `error` is why, None if nothing is."""

    def __init__(self, stream: Any):
        """`stream` is None where Python has none, as where a command's is closed."""
        self._stream: Any = io.StringIO() if stream is None else stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write a text as far as possible."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write at once what was to be written."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Whether it is a terminal, which is there."""
        return bool(self._try(self._stream.isatty))

    def settle(self) -> None:
        """Let what is left be lost where it cannot be written, not fail as Python ends."""
        self.flush()
        if isinstance(self.error, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it was closed since
            self.error = error
            return None


def open_closed() -> None:
    """Open the null device where a standard stream is closed, or a file would take its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
