"""What a study's protocol says of the configurations it ran, made from their fields."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any


def told_settings(what: str, configs: Sequence[Any]) -> str:
    """A sentence that names every setting with which some runs differ from the defaults.

    Args:
      what: what the runs are called.
      configs: their configurations, dataclasses of one type whose fields all have defaults. A field
        in which they differ from one another is what the study compares, and is left to its tables.
    """
    first, *others = [_changed(config, type(config)()) for config in configs]
    shared = [
        f"{name}={value!r}"
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    ]
    if not shared:
        return f"All settings of {what} that are not compared are the defaults."
    return f"Settings of {what} that are not the defaults: {', '.join(shared)}."


def placeless(source: str) -> str:
    """What a data set says of itself, with DIR for the folders of this machine."""
    return re.sub(r"(?<!\S)/[^\s,;:)]*", "DIR", source)


def _changed(config: Any, default: Any) -> dict[str, Any]:
    """Values that are not the default's by field; of a dataclass within, by `outer.inner`."""
    found = {}
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            inner = _changed(value, usual)
            found |= {f"{field.name}.{name}": entry for name, entry in inner.items()}
        elif value != usual and field.name != "data_dir":  # a place of this machine alone
            found[field.name] = value
    return found
