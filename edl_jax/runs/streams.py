"""Standard output and error that may be full or gone, and end no run by that."""

from typing import Any


class Lenient:
    """A text stream of which what cannot be written is lost; `error` says why."""

    error: Exception | None = None

    def __init__(self, stream: Any):
        """Put it around a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stream, name)

        def tried(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except (OSError, ValueError) as error:  # ValueError: it was closed since
                self.error = error

        return tried if name in ("write", "flush", "isatty") else method
