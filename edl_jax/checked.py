"""Checked configurations: a field's annotation says what it may hold.

>>> @dataclasses.dataclass(frozen=True)
... class Walk(Checked):
...     steps: Annotated[int, Ge(1)] = 10
...     pace: Literal["slow", "fast"] = "slow"
>>> Walk(steps=0)
Traceback (most recent call last):
  ...
edl_jax.errors.ConfigError: Walk.steps is 0; expected a whole number, at least 1.
"""

import dataclasses
import functools
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MinLen

from edl_jax.errors import ConfigError, InputError

Config = TypeVar("Config")

MAX_SEED = 2**32 - 1  # jax.random.key keeps 32 bits of a seed; others would wrap
Seed = Annotated[int, Ge(0), Le(MAX_SEED)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: a table has no hash
class OneOf:
    """Bound of a name: a key of a table to which users may add."""

    table: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Distinct:
    """Bound of a tuple: it holds no value twice."""


class Checked:
    """Base of the configurations: frozen dataclasses whose fields are checked when made.

    A field's annotation holds its type and bounds: `Ge`, `Gt`, `Le`, `Lt` and `MinLen` of
    `annotated_types`, `OneOf` and `Distinct`. All numbers have to be finite. A value that means the
    same is turned into the type: a list into a tuple, a path into a string, a NumPy number into
    Python's. A whole number may stand for a float; True and False are not numbers.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = check(f"{type(self).__name__}.{name}", getattr(self, name), hint)
            object.__setattr__(self, name, value)


def check(name: str, value: Any, hint: Any) -> Any:
    """The value as a configuration's field with this annotation would hold it.

    Raises:
      ConfigError: if it does not fit, saying `name`, the value and what was expected.
    """
    plain = _plain(value)
    if not _fits(plain, hint):
        raise ConfigError(f"{name} is {value!r}; expected {_in_words(hint)}.")
    return plain


def check_seeds(config: Any, field: str, first: int) -> None:
    """Refuse a number of seeds `first, first + 1, ...`, a field's, of which one would wrap."""
    count = getattr(config, field)
    if first + count - 1 > MAX_SEED:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {count} with seeds from {first} on; expected "
            f"none above {MAX_SEED}: fewer, or a lower first seed."
        )


def config_or_default(config: Config | None, kind: type[Config]) -> Config:
    """The configuration, which must be of that kind, or the default one where None is given."""
    if config is not None and not isinstance(config, kind):
        raise ConfigError(f"config is {config!r}; expected a {kind.__name__}, or None.")
    return kind() if config is None else config


def checked_key(key: Any) -> jax.Array:
    """The key, which must be a single one of `jax.random.key`."""
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape:
        raise InputError(
            f"key is {key!r}; expected a key such as jax.random.key(0), and a single one. "
            "jax.random.wrap_key_data makes one of a PRNGKey."
        )
    return key


@functools.cache
def _hints(config_type: type) -> dict[str, Any]:
    return get_type_hints(config_type, include_extras=True)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _fits(value, parts[0]) and all(_BOUNDS[type(x)][0](value, x) for x in _bounds(parts))
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(x, parts[0]) for x in value)
    if kind is dict:
        return isinstance(value, dict) and all(
            _fits(x, parts[0]) and _fits(y, parts[1]) for x, y in value.items()
        )
    if hint in (int, float):
        is_kind = isinstance(value, int if hint is int else int | float)
        return is_kind and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return hint is Any or isinstance(value, hint)


def _in_words(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        words = " and ".join(_BOUNDS[type(x)][1](x) for x in _bounds(parts))
        is_name = words.startswith("one of ")
        return words if is_name else ", ".join(filter(None, [_in_words(parts[0]), words]))
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind in (Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if kind is tuple:
        return f"a tuple (each {_in_words(parts[0])})"
    if kind is dict:
        return f"a dictionary by name (each {_in_words(parts[1])})"
    return _WORDS.get(hint) or f"an instance of {hint.__name__}"


def _bounds(parts: tuple[Any, ...]) -> list[Any]:
    """The bounds of an annotation's parts, which may hold others' notes, such as tyro's."""
    return [part for part in parts[1:] if type(part) in _BOUNDS]


# Of each kind of bound, whether a value is within, and how to say so.
_BOUNDS: dict[type, tuple[Callable[[Any, Any], bool], Callable[[Any], str]]] = {
    Ge: (lambda value, bound: value >= bound.ge, lambda bound: f"at least {bound.ge}"),
    Gt: (lambda value, bound: value > bound.gt, lambda bound: f"more than {bound.gt}"),
    Le: (lambda value, bound: value <= bound.le, lambda bound: f"at most {bound.le}"),
    Lt: (lambda value, bound: value < bound.lt, lambda bound: f"less than {bound.lt}"),
    MinLen: (
        lambda value, bound: len(value) >= bound.min_length,
        lambda bound: "not empty" if bound.min_length == 1 else f"{bound.min_length} or more",
    ),
    Distinct: (lambda value, _: len(set(value)) == len(value), lambda _: "all different"),
    OneOf: (lambda value, bound: value in bound.table, lambda x: f"one of {', '.join(x.table)}"),
}
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "a truth value",
    type(None): "None",
    Any: "a value",
}
