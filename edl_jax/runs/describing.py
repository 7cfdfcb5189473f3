"""What tells a user's loss, severity or strategy from another, for the run folders."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PLACE = "data_dir"  # a setting that says where something lies, not what it is
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_WRAPPERS = (type(jax.jit(abs)), type(functools.cache(abs)))  # which change no result
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")  # whose functions have their names alone
# Attributes that say nothing: those of code, and what NNX notes as it traces.
_IGNORED = "__(module|name|qualname|doc|annotations)__|_(pytree|object)__.*|_(trace|var)_[a-z]*"
_NEW = object().__reduce_ex__(4)[0]  # by which pickle makes most objects anew
_MOST = 1000  # characters, after which a digest stands for the rest


def describe(part: Any) -> str:
    """A loss or another part as text: `name(option=value, ...)`, with digests of its arrays.

    Options are the defaults and given arguments of a function, and what it took from where it was
    made; all attributes of another object, or what pickle keeps of it. Code is not looked at, nor
    what it reads of globals and classes: give another formula another name. What a part has as its
    attribute `described_as` is described in its place.
    """
    texts: dict[int, tuple[Any, str]] = {}  # by id, each with its object, which so keeps its id

    def text_of(value: Any) -> str:
        value = _bare(value)
        if type(value) in _PLAIN or isinstance(value, np.generic | np.dtype):
            return repr(value)
        if id(value) not in texts:
            texts[id(value)] = value, "..."  # where it holds itself
            text = written(value)
            is_long = len(text) > _MOST
            texts[id(value)] = value, text[:_MOST] + _digest(text.encode()) if is_long else text
        return texts[id(value)][1]

    def written(value: Any) -> str:
        if isinstance(value, jax.Array) or type(value) in (np.ndarray, np.memmap):
            is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            held = np.asarray(jax.random.key_data(value) if is_key else value)
            data = text_of(held.tolist()) if held.dtype.hasobject else _digest(held.tobytes())
            return f"{value.dtype}{list(held.shape)}{data}"
        if type(value) is dict:
            entries = sorted(f"{text_of(key)}: {text_of(x)}" for key, x in value.items())
            return f"{{{', '.join(entries)}}}"
        if type(value) in (list, tuple, set, frozenset):
            entries = map(text_of, value)
            return f"({', '.join(entries if isinstance(value, list | tuple) else sorted(entries))})"
        name, options = _named(value)
        given = [(f"{key}=" if isinstance(key, str) else "", x) for key, x in options.items()]
        return f"{name}({', '.join(key + text_of(x) for key, x in given)})" if given else name

    return text_of(part)


def describe_config(config: Any) -> str:
    """A configuration as text, of the fields that are not at their defaults, but no place."""
    if not dataclasses.is_dataclass(type(config)) or hasattr(config, "described_as"):
        return describe(config)
    fields = [x for x in dataclasses.fields(config) if x.name != PLACE]
    told = {x.name: describe_config(getattr(config, x.name)) for x in fields}
    given = {x.name: told[x.name] for x in fields if told[x.name] != describe_config(x.default)}
    return f"{type(config).__qualname__}{given}"


def _digest(data: bytes) -> str:
    return f"...{hashlib.sha256(data).hexdigest()[:16]}"


def _bare(value: Any) -> Any:
    """What is described in place of a value."""
    while type(value) in _WRAPPERS:
        value = value.__wrapped__
    other = inspect.getattr_static(value, "described_as", value)
    if other is not value and getattr(value, "__wrapped__", other) is other:  # and not of `wraps`
        return _bare(other)
    return value.item() if isinstance(value, np.generic) else value


def _named(part: Any) -> tuple[str, dict[Any, Any]]:
    """The name and the options of a function or another object."""
    kind, home = type(part), sys.modules.get(str(getattr(part, "__module__", None)))
    is_global = getattr(home, str(getattr(part, "__qualname__", None)), None) is part
    if inspect.ismodule(part) or (is_global and part.__module__.split(".")[0] in _LIBRARIES):
        return part.__name__, {}
    if isinstance(part, functools.partial):
        name, options = _named(_bare(part.func))
        return name, {**options, **dict(enumerate(part.args)), **part.keywords}
    if inspect.isfunction(part) or isinstance(part, type):
        options = {} if isinstance(part, type) or hasattr(part, "__wrapped__") else {**vars(part)}
        with contextlib.suppress(TypeError, ValueError):  # a class in C, a name without a value
            called = part.__init__ if isinstance(part, type) else part
            parameters = inspect.signature(called, follow_wrapped=False).parameters.values()
            options |= {x.name: x.default for x in parameters if x.default is not x.empty}
            options |= inspect.getclosurevars(part).nonlocals
        return part.__qualname__, options
    try:
        made = part.__reduce_ex__(4)
    except Exception:  # of what cannot be pickled
        made = kind, (), object.__getstate__(part)
        made = repr(part) if made[2] is None and " at 0x" not in repr(part) else made
    if isinstance(made, str):  # as of a function in C
        return made, {}
    make, given, *rest = made  # attributes, those in slots apart, and iterators over items
    rest = [x for each in rest for x in (each if isinstance(each, tuple) else (each,))]
    given = [x for x in (make, *given) if x is not _NEW and x is not kind]
    given += [
        [*x] if isinstance(x, Iterator) else x for x in rest if not isinstance(x, dict | None)
    ]
    state = {str(key): x for each in rest if isinstance(each, dict) for key, x in each.items()}
    cached = {key for key in state if type(getattr(kind, key, None)) is functools.cached_property}
    kept = [key for key in sorted(state.keys() - cached) if not re.fullmatch(_IGNORED, key)]
    return kind.__qualname__, dict(enumerate(given)) | {key: state[key] for key in kept}
