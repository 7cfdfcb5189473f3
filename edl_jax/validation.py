"""Checks that configurations share, each naming the field, its value and what was expected.

`check_types` comes first: the others count on it.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from edl_jax.errors import ConfigError, InputError

Config = TypeVar("Config")

MAX_SEED = 2**32 - 1  # jax.random.key keeps 32 bits of a seed


def config_or_default(config: Config | None, kind: type[Config]) -> Config:
    """The configuration, or the defaults where None is given.

    Raises:
      ConfigError: if it is of another kind.
    """
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise ConfigError(f"config is {config!r}; expected a {kind.__name__}, or None.")
    return config


def checked_key(key: Any) -> jax.Array:
    """The key, if it is one of `jax.random.key`.

    Raises:
      InputError: if it is not.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise InputError(f"key is {key!r}; expected a key such as jax.random.key(0).")
    return key


def check_types(config: Any) -> None:
    """Refuse a field that is not of its annotated type.

    A list may stand for a tuple and a whole number for a float; True and False are no numbers.

    Raises:
      ConfigError: naming the first such field, its value and the type.
    """
    for field, hint in _hints(type(config)).items():
        value = getattr(config, field)
        parts = tuple(value) if isinstance(value, list) else value
        truths = [
            x for x in (parts if isinstance(parts, tuple) else [parts]) if x is True or x is False
        ]
        try:
            if truths and bool not in (hint, *get_args(hint)):
                raise TypeCheckError("a truth value")
            check_type(parts, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise ConfigError(
                f"{type(config).__name__}.{field} is {value!r}; expected {_in_words(hint)}."
            ) from error


@functools.cache
def _hints(config_type: type) -> dict[str, Any]:
    return get_type_hints(config_type)


def _in_words(hint: Any, plural: bool = False) -> str:
    """`tuple[int, ...]` is "a tuple of whole numbers", say."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(parts)}"
    if kind is tuple:
        return f"a tuple of {_in_words(parts[0], plural=True)}"
    if kind is dict:
        return f"a dictionary from {_in_words(parts[0], True)} to {_in_words(parts[1], True)}"
    if parts:  # a union
        return " or ".join(_in_words(part, plural) for part in parts)
    words = {int: "whole number", float: "number", str: "string", bool: "truth value"}
    if hint not in words:
        return "None" if hint is type(None) else f"a {hint.__name__}"
    return f"{words[hint]}s" if plural else f"a {words[hint]}"


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
    """Refuse a whole number that is not between `low` and `high`.

    Raises:
      ConfigError: naming the field, its value and the range.
    """
    value = getattr(config, field)
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" + ("" if high is None else f" and at most {high}")
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a whole number, {expected}."
        )


def check_wholes(config: Any, field: str, low: int) -> None:
    """Refuse whole numbers of which one is below `low`.

    Raises:
      ConfigError: naming the field, its value and what was expected.
    """
    value = getattr(config, field)
    if not all(x >= low for x in value):
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a tuple of whole numbers, "
            f"each at least {low}, such as ({low},)."
        )


def check_different(config: Any, field: str, kind: str = "values") -> None:
    """Refuse what holds a value twice; `kind` says what it is to hold.

    Raises:
      ConfigError: naming the field, its value and what was expected.
    """
    values = getattr(config, field)
    if len(set(values)) != len(values):
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
    in_range = low < value if open_low else low <= value
    in_range = in_range and (value < high if open_high else value <= high)
    if not (in_range and math.isfinite(value)):
        expected = f"more than {low}" if open_low else f"at least {low}"
        if math.isfinite(high):
            expected += f" and {'less than' if open_high else 'at most'} {high}"
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a finite number, {expected}."
        )
