"""Checks that configurations share, each naming the field, its value and what was expected."""

import math
from collections.abc import Iterable
from typing import Any

from edl_jax.errors import ConfigError

MAX_SEED = 2**32 - 1  # jax.random.key keeps 32 bits of a seed


def check_choice(config: Any, field: str, choices: Iterable[str]) -> None:
    """Refuse a name that is not among `choices`.

    Raises:
      ConfigError: naming the field, its value and the choices.
    """
    value, choices = getattr(config, field), list(choices)
    if value not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected one of {', '.join(choices)}."
        )


def check_whole(config: Any, field: str, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number between `low` and `high`; True and False are none.

    Raises:
      ConfigError: naming the field, its value and the range.
    """
    value = getattr(config, field)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        expected = f"at least {low}" + ("" if high is None else f" and at most {high}")
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a whole number, {expected}."
        )


def check_wholes(config: Any, field: str, low: int) -> None:
    """Refuse what is no tuple or list of whole numbers of at least `low`.

    Raises:
      ConfigError: naming the field, its value and what was expected.
    """
    value = getattr(config, field)
    if not isinstance(value, tuple | list) or not all(
        isinstance(x, int) and not isinstance(x, bool) and x >= low for x in value
    ):
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a tuple of whole numbers, "
            f"each at least {low}, such as ({low},)."
        )


def check_different(config: Any, field: str, kind: str = "values") -> None:
    """Refuse what is no tuple or list, or holds a value twice; `kind` says what it is to hold.

    Raises:
      ConfigError: naming the field, its value and what was expected.
    """
    values = getattr(config, field)
    if not isinstance(values, tuple | list) or len(set(values)) != len(values):
        raise ConfigError(
            f"{type(config).__name__}.{field} is {values!r}; expected a tuple of different {kind}."
        )


def check_range(
    config: Any,
    field: str,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a number outside `[low, high]`, an end of which may be open; NaN is outside.

    Raises:
      ConfigError: naming the field, its value and the range.
    """
    value = getattr(config, field)
    in_range = isinstance(value, int | float) and (low < value if open_low else low <= value)
    in_range = in_range and (value < high if open_high else value <= high)
    if not (in_range and math.isfinite(value)):
        expected = f"more than {low}" if open_low else f"at least {low}"
        if math.isfinite(high):
            expected += f" and {'less than' if open_high else 'at most'} {high}"
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a finite number, {expected}."
        )
