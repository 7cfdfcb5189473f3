"""What tells a user's loss, severity or strategy from another, for the run folders."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def describe(part: Any) -> str:
    """A loss or another part as text: `name(option=value, ...)`, and a digest of its arrays.

    Options are the defaults and the given arguments of a function, the fields of a dataclass or
    named tuple, the attributes of another object, and what a function took from where it was made,
    of functions the names. Code is not looked at: give another formula another name.
    """
    arrays, above = hashlib.sha256(), []

    def text_of(value: Any) -> str:
        if isinstance(value, nnx.Variable):
            value = value[...]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, jax.Array | np.ndarray):
            is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            held = np.asarray(jax.random.key_data(value) if is_key else value)
            arrays.update(held.tobytes())
            return f"{held.dtype}{list(held.shape)}"
        if isinstance(value, dict):
            entries = [f"{key}: {text_of(value[key])}" for key in sorted(value, key=str)]
            return f"{{{', '.join(entries)}}}"
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return f"({', '.join(map(text_of, value))})"
        if value is None or isinstance(value, bool | int | float | str):
            return repr(value)
        if id(value) in above:
            return "..."
        name, options = _named(value)
        above.append(id(value))
        listed = ", ".join(f"{key}={text_of(x)}" for key, x in options.items())
        above.pop()
        return f"{name}({listed})" if listed else name

    text, empty = text_of(part), hashlib.sha256().digest()
    return text if arrays.digest() == empty else f"{text} {arrays.hexdigest()[:16]}"


def _named(part: Any) -> tuple[str, dict[Any, Any]]:
    """The qualified name and the options of a function or another object."""
    if isinstance(part, functools.partial):
        name, options = _named(part.func)
        return name, {**options, **dict(enumerate(part.args)), **part.keywords}
    if hasattr(part, "__qualname__"):
        part, options = inspect.unwrap(part), {}
        with contextlib.suppress(TypeError, ValueError):  # of a class, a function in C, a generator
            parameters = {} if isinstance(part, type) else inspect.signature(part).parameters
            arguments = [(k, x) for k, x in parameters.items() if k not in ("axis", "where")]
            options = {k: x.default for k, x in arguments if x.default is not x.empty}
        if closure := getattr(part, "__closure__", None):  # functions by name: it may be its own
            taken = zip(part.__code__.co_freevars, (x.cell_contents for x in closure), strict=True)
            options |= {key: getattr(value, "__qualname__", value) for key, value in taken}
        return part.__qualname__, options
    if dataclasses.is_dataclass(part):
        options = {x.name: getattr(part, x.name) for x in dataclasses.fields(part) if x.repr}
    elif hasattr(part, "_asdict"):
        options = part._asdict()
    else:
        options = getattr(part, "__dict__", {})
    return type(part).__qualname__, {k: v for k, v in options.items() if str(k)[0] != "_"}
