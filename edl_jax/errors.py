"""The package's own exceptions: every refusal names the value, what was expected and what to do."""


class EDLError(Exception):
    """Base class of all exceptions that `edl_jax` raises on purpose."""


class ConfigError(EDLError, ValueError):
    """A configuration field holds a value that cannot work."""


class InputError(EDLError, ValueError):
    """An array argument has the wrong shape, dtype or range."""


class DataError(EDLError):
    """A data set is missing, damaged or cannot be prepared."""


class LossFileError(EDLError):
    """A loss file is truncated, foreign, or does not fit its own header."""


class RunFolderError(EDLError):
    """A run folder belongs to another configuration or is damaged."""


class DivergedError(EDLError):
    """A training's loss or gradient is no longer finite."""


class ProcessError(EDLError):
    """Another process of a run cannot be reached, is gone, or was not started alike."""


class Preempted(EDLError):
    """The run was told to stop by SIGTERM, and has saved what it needs to resume."""


def shortened(text: object, most: int = 600) -> str:
    """A text on one line, cut to a few lines of a screen."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]} ..."
