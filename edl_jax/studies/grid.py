"""The axes of a sweep: fields of nested dataclasses by dotted name, and their values."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from edl_jax.errors import ConfigError

Config = TypeVar("Config")
Point = Mapping[str, Any]  # values of some fields by dotted name


def _grid_of(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """A grid as the command line has it: `train.width=8,16 pretrain.hidden=[16,16],[64]`."""
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        if not text:
            raise ValueError(f"{word!r} is no FIELD=VALUE,VALUE,...")
        # Commas within brackets, such as of poly(epsilon=1,alpha=2), do not separate values.
        found[name] = tuple(map(_value_of, re.split(r",(?![^(\[]*[)\]])", text)))
    return found


def _value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


Grid = Annotated[
    dict[str, tuple[Any, ...]],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FIELD=VALUE,VALUE,...",
        instance_from_str=_grid_of,
        is_instance=lambda grid: isinstance(grid, dict),
        str_from_instance=lambda grid: [
            f"{name}={','.join(x if isinstance(x, str) else json.dumps(x) for x in values)}"
            for name, values in grid.items()
        ],
    ),
]


def points(grid: Mapping[str, Sequence[Any]] | Sequence[Point]) -> list[Point]:
    """Every combination of a grid; a list of combinations as it is."""
    if not isinstance(grid, Mapping):
        return list(grid)
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_fields(config: Config, values: Point) -> Config:
    """A copy of a dataclass with other values of some fields, by dotted name."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    names = [field.name for field in dataclasses.fields(config)]  # pyright: ignore
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = getattr(config, first) if first in names else None
        if first not in names or (rest and not dataclasses.is_dataclass(inner)):
            raise ConfigError(
                f"{type(config).__name__} has no field {name!r}; expected one of "
                f"{', '.join(names)}, or a field of one of these, after a dot."
            )
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for first, inner in nested.items():
        own[first] = with_fields(own.get(first, getattr(config, first)), inner)
    return dataclasses.replace(config, **own)  # pyright: ignore


def check_grid(config: Any, base: Any, fixed: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a field `grid` of which a combination with the values of `fixed` cannot work."""
    for name, values in config.grid.items():
        where = f"{type(config).__name__}.grid[{name!r}]"
        if name in fixed:
            raise ConfigError(f"{where} is given; expected it left out: another field sets it.")
        if not values or len({json.dumps(plain(x)) for x in values}) < len(values):
            raise ConfigError(f"{where} is {values!r}; expected different values, at least one.")
    for point in points({**config.grid, **fixed}):
        with_fields(base, point)


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists, dataclasses as dictionaries."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))
