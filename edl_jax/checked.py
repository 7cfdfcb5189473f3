"""Checked configurations: a field's annotation says what it may hold."""

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
from annotated_types import BaseMetadata, Ge, Gt, Le, Lt, MinLen

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

    A field's annotation holds its type and bounds: `Ge`, `Gt`, `Le`, `Lt` and `MinLen(1)` of
    `annotated_types`, `OneOf` and `Distinct`. All numbers have to be finite. A value that means the
    same is turned into the type: a list into a tuple, a path into a string, a NumPy number into
    Python's, a whole number into a float. True and False are not numbers. A `ConfigError`
    names the first field that cannot work, its value and what was expected.
    """

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = check(f"{type(self).__name__}.{name}", getattr(self, name), hint)
            object.__setattr__(self, name, value)


def check(name: str, value: Any, hint: Any) -> Any:
    """The value as a field with this annotation would hold it, or a `ConfigError` with its name."""
    plain, (fits, words) = _plain(value), _rule(hint)
    if not fits(plain):
        raise ConfigError(f"{name} is {value!r}; expected {words}.")
    return _typed(plain, hint)


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
def hints(config_type: type) -> dict[str, Any]:
    """The annotations of a configuration's fields, with their bounds and notes."""
    return get_type_hints(config_type, include_extras=True)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _typed(value: Any, hint: Any) -> Any:
    """A value that fits an annotation, with floats where whole numbers stand for them."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return _typed(value, next(part for part in parts if _rule(part)[0](value)))
    if kind is tuple:
        return tuple(_typed(x, parts[0]) for x in value)
    if kind is Annotated:
        return _typed(value, parts[0])
    return float(value) if hint is float else value


_Rule = tuple[Callable[[Any], bool], str]
_NUMBERS = {int: ({int}, "a whole number"), float: ({int, float}, "a finite number")}
_WORDS = {str: "a string", bool: "a truth value", type(None): "None", Any: "a value"}


def _rule(hint: Any) -> _Rule:
    """Whether a value fits an annotation, and what is expected, in words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        words = f"one of {', '.join(map(str, parts))}"
        return lambda x: any(type(x) is type(part) and x == part for part in parts), words
    if kind in (Union, types.UnionType):
        rules = [_rule(part) for part in parts]
        words = " or ".join(words for _, words in rules)
        return lambda x: any(fits(x) for fits, _ in rules), words
    if kind is Annotated:
        bounds = [rule for part in parts[1:] if (rule := _bound(part))]
        words = " and ".join(words for _, words in bounds)
        fits_type, type_words = _rule(parts[0])
        if not words.startswith("one of "):
            words = ", ".join(filter(None, [type_words, words]))
        return lambda x: fits_type(x) and all(fits(x) for fits, _ in bounds), words
    if kind in (tuple, dict):
        fits, words = _rule(parts[0 if kind is tuple else 1])
        if kind is tuple:
            return lambda x: isinstance(x, tuple) and all(map(fits, x)), f"a tuple (each {words})"
        words = f"a dictionary by name (each {words})"
        return (
            lambda x: isinstance(x, dict) and all(isinstance(k, str) and fits(x[k]) for k in x),
            words,
        )
    if hint in _NUMBERS:
        kinds, words = _NUMBERS[hint]
        return lambda x: type(x) in kinds and abs(x) <= sys.float_info.max, words
    words = _WORDS.get(hint) or f"an instance of {hint.__name__}"
    return lambda x: hint is Any or isinstance(x, hint), words


def _bound(bound: Any) -> _Rule | None:
    """The same of a bound; None of others' notes in an annotation, such as tyro's."""
    match bound:
        case Ge(least):
            return lambda value: value >= least, f"at least {least}"
        case Gt(least):
            return lambda value: value > least, f"more than {least}"
        case Le(most):
            return lambda value: value <= most, f"at most {most}"
        case Lt(most):
            return lambda value: value < most, f"less than {most}"
        case MinLen(1):
            return lambda value: len(value) > 0, "not empty"
        case Distinct():
            return lambda value: len(set(value)) == len(value), "all different"
        case OneOf(table):
            return lambda value: value in table, f"one of {', '.join(table)}"
        case BaseMetadata():
            raise TypeError(f"{bound} is no bound that is checked; `Checked` lists those that are.")
    return None
