"""What tells a user's loss, severity or strategy from another, for the run folders."""

import dataclasses
import functools
import hashlib
import inspect
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edl_jax.losses import EvolvedLoss

_FEW = 100  # numbers that are told one by one
_ADDRESS = re.compile(" at 0x[0-9a-f]+")
_RULES = ("fwd", "bwd", "jvp")  # of jax.custom_vjp and jax.custom_jvp


def describe(part: Callable[..., Any]) -> str:
    """What tells a loss, or another callable, from another.

    A digest of an evolved loss's or a module's arrays and structure; of a function its name and all
    its options, the defaults included, and the values that it took from where it was made; of any
    other object its class and attributes; and of what is not of this package a digest of the code.
    Global variables and other functions that the code refers to are not looked at.
    """
    return _Describer().callable(part)


class _Describer:
    """Walks through callables and values; one that holds itself is told as `...` within."""

    def __init__(self) -> None:
        self._above: list[int] = []

    def callable(self, part: Callable[..., Any]) -> str:
        if id(part) in self._above:
            return "..."
        self._above.append(id(part))
        try:
            if isinstance(part, functools.partial):
                options = {**dict(enumerate(part.args)), **_defaults(part)}
                return self._named(part.func) + self._listed(options)
            if isinstance(part, types.FunctionType):
                return self._named(part) + self._listed(_defaults(part))
            return self._named(part)
        finally:
            self._above.pop()

    def _named(self, part: Callable[..., Any]) -> str:
        """All but the options: arrays; name, code and closure; object; attributes."""
        if isinstance(part, EvolvedLoss):
            return f"EvolvedLoss {_digest(repr(part.architecture), part)}"
        if isinstance(part, nnx.Module):
            return self._module(part)
        if isinstance(part, types.FunctionType):
            values = (cell.cell_contents for cell in part.__closure__ or ())
            taken = dict(zip(part.__code__.co_freevars, values, strict=True))
            return part.__qualname__ + _code_of(part) + self._listed(taken)
        if isinstance(part, types.MethodType):
            return self.callable(part.__func__) + self._listed({"self": part.__self__})
        wrapped = getattr(part, "__wrapped__", None)
        if wrapped is not None:  # such as of what jax.jit gives
            rules = {rule: getattr(part, rule, None) for rule in _RULES}
            rules = {rule: value for rule, value in rules.items() if callable(value)}
            return self.callable(wrapped) + self._listed(rules)
        if hasattr(part, "__qualname__"):  # a class, or a function written in C
            return part.__qualname__
        return _class_of(part) + self._listed(_attributes(part))

    def _module(self, module: nnx.Module) -> str:
        graphdef, state = nnx.split(module)
        static = [getattr(part, "value", None) for _, part in graphdef.attributes]
        functions = self._listed(dict(enumerate(filter(callable, static))))
        # Bytes alone tell a matrix from its transpose only if the shapes are told too.
        shapes = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(state) if np.ndim(x) > 1]
        structure = _ADDRESS.sub("", repr(graphdef)) + functions + (repr(shapes) if shapes else "")
        return f"{_class_of(module)} {_digest(structure, state)}"

    def _listed(self, values: Mapping[Any, Any]) -> str:
        listed = ", ".join(f"{key}={self._told(value)}" for key, value in values.items())
        return f"({listed})" if listed else ""

    def _told(self, value: Any) -> str:
        if callable(value):
            return self.callable(value)
        if isinstance(value, nnx.Variable):
            value = value[...]
        if isinstance(value, jax.Array | np.ndarray):
            return _array(value)
        if id(value) in self._above:
            return "..."
        self._above.append(id(value))
        try:
            if isinstance(value, Mapping):
                entries = (f"{key!r}: {self._told(entry)}" for key, entry in value.items())
                return f"{{{', '.join(entries)}}}"
            if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
                return f"({', '.join(map(self._told, value))})"
            if isinstance(value, set | frozenset):  # whose order differs from process to process
                return f"{{{', '.join(sorted(map(self._told, value)))}}}"
            if isinstance(value, os.PathLike):
                return repr(os.fspath(value))
            if isinstance(value, nnx.Module):
                return self._module(value)
            # What shortens its arrays, or tells where it lies in memory.
            is_record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
            if is_record or _ADDRESS.search(told := repr(value)):
                return type(value).__qualname__ + self._listed(_attributes(value))
            return told
        finally:
            self._above.pop()


def _defaults(part: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function or a partial, with their values."""
    return {
        key: parameter.default
        for key, parameter in inspect.signature(part).parameters.items()
        if parameter.default is not parameter.empty and key not in ("axis", "where")
    }


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object by name, those in slots and of named tuples too."""
    slots: Iterable[str] = (
        name
        for kind in type(value).__mro__
        for name in np.atleast_1d(getattr(kind, "__slots__", ())).tolist()
    )
    names = [*getattr(value, "_fields", ()), *slots, *getattr(value, "__dict__", {})]
    return {
        name: getattr(value, name)
        for name in dict.fromkeys(names)
        if hasattr(value, name) and name not in ("__dict__", "__weakref__")
    }


def _class_of(part: Callable[..., Any]) -> str:
    call = getattr(type(part), "__call__", None)  # noqa: B004, as its code is wanted
    return type(part).__qualname__ + _code_of(call)


def _code_of(function: Any) -> str:
    """A digest of a function's code, after a space; nothing of one that is of this package."""
    if not isinstance(function, types.FunctionType):
        return ""
    module = function.__module__ or ""  # None of what `exec` made under a namespace without name
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return ""
    digest = hashlib.sha256()

    def add(code: types.CodeType) -> None:
        digest.update(code.co_code + repr(code.co_names).encode())
        for value in code.co_consts:
            if isinstance(value, types.CodeType):
                add(value)
            else:  # a set's order differs from process to process
                told = sorted(map(repr, value)) if isinstance(value, frozenset) else value
                digest.update(repr(told).encode())

    add(function.__code__)
    return f" {digest.hexdigest()[:16]}"


def _array(value: Any) -> str:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {_array(jax.random.key_data(value))}"
    if value.size > _FEW:
        return f"array {_digest(f'{value.shape} {value.dtype}', value)}"
    return repr(np.asarray(value).tolist())


def _digest(structure: str, arrays: Any) -> str:
    digest = hashlib.sha256(structure.encode())
    for array in jax.tree.leaves(arrays):
        is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(array) if is_key else array).tobytes())
    return digest.hexdigest()[:16]
