"""Checks that configurations share, each naming the field, its value and what was expected.

`check_types` comes first: the others count on it.
"""

import functools
import math
import operator
import os
import sys
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
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
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape:
        raise InputError(
            f"key is {key!r}; expected a key such as jax.random.key(0), and a single one. "
            "jax.random.wrap_key_data makes one of a PRNGKey."
        )
    return key


def is_finite(value: float) -> bool:
    """Whether a number, a whole one of any size too, is finite as a float."""
    return abs(value) <= sys.float_info.max


def check_types(config: Any) -> None:
    """Refuse a field of a frozen dataclass that is not of its annotated type.

    What means the same is turned into it: a list into a tuple, a path into a string, a number of
    NumPy's into Python's. A whole number may stand for a float; True and False are no numbers.

    Raises:
      ConfigError: naming the first such field, its value and the type.
    """
    for field, hint in _hints(type(config)).items():
        given = getattr(config, field)
        value = _plain(given)
        if not _fits(value, hint):
            raise ConfigError(
                f"{type(config).__name__}.{field} is {given!r}; expected {_in_words(hint)}."
            )
        if value is not given:
            object.__setattr__(config, field, value)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        parts = tuple(map(_plain, value))
        is_same = isinstance(value, tuple) and all(map(operator.is_, parts, value))
        return value if is_same else parts
    if isinstance(value, dict):
        entries = {key: _plain(entry) for key, entry in value.items()}
        return value if all(entries[key] is value[key] for key in value) else entries
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _fits(value: Any, hint: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    if bool not in (hint, *get_args(hint)) and any(isinstance(part, bool) for part in parts):
        return False
    try:
        check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        return False
    return True


@functools.cache
def _hints(config_type: type) -> dict[str, Any]:
    return get_type_hints(config_type)


def _in_words(hint: Any, plural: bool = False) -> str:
    """`tuple[int, ...]` is "a tuple of whole numbers", say."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(parts)}"
    if kind is tuple:
        of_what = _in_words(parts[0], plural=True)
        if plural:
            return f"tuples of {of_what}"
        examples = {int: "(1,)", float: "(0.1,)", str: "('name',)"}
        return f"a tuple of {of_what}, such as {examples.get(parts[0], '((1,), (2,))')}"
    if kind is dict:
        return f"a dictionary of {_in_words(parts[1], plural=True)} by name"
    if parts:  # a union
        *words, last = (_in_words(part, plural) for part in parts)
        return f"{', '.join(words)} or {last}"
    words = {int: "whole number", float: "number", str: "string", bool: "truth value"}
    if hint not in words:
        return "None" if hint is type(None) else f"an instance of {hint.__name__}"
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


def check_seed(name: str, seed: Any) -> int:
    """The seed, if it is a whole number that `jax.random.key` keeps whole.

    Raises:
      ConfigError: if it is not, naming it as `name`; a larger or negative one would wrap.
    """
    is_whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_whole or not 0 <= seed <= MAX_SEED:
        raise ConfigError(
            f"{name} is {seed!r}; expected a whole number, at least 0 and at most {MAX_SEED}."
        )
    return int(seed)


def check_seed_count(config: Any, field: str, first: int, low: int = 1) -> None:
    """Refuse a number of seeds `first, first + 1, ...` that is below `low`, or of which one wraps.

    Raises:
      ConfigError: naming the field, its value, the first seed and what was expected.
    """
    check_whole(config, field, low)
    count = getattr(config, field)
    if first + count - 1 > MAX_SEED:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {count} with seeds from {first} on; expected "
            f"none above {MAX_SEED}: fewer, or a lower first seed."
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
    if not (in_range and is_finite(value)):
        expected = f"more than {low}" if open_low else f"at least {low}"
        if math.isfinite(high):
            expected += f" and {'less than' if open_high else 'at most'} {high}"
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; expected a finite number, {expected}."
        )
