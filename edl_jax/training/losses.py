"""Losses by name."""

import ast
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edl_jax.baselines import LOSSES
from edl_jax.errors import ConfigError, EDLError
from edl_jax.frozen import PRETRAINED, EvolvedLoss, load_pretrained

Loss = Callable[[jax.Array, jax.Array], jax.Array]

_FEW = 100  # numbers that are told one by one
_NOT_OPTIONS = {"axis", "where", "class_counts"}


def split_loss_name(name: str) -> tuple[str, dict[str, Any]]:
    """A loss's name alone, and the options behind it: `gce(q=0.5)` is `gce` and `{"q": 0.5}`.

    Raises:
      ConfigError: if what stands in brackets are no options.
    """
    if not isinstance(name, str) or not name.endswith(")"):
        return name, {}
    refusal = ConfigError(
        f"loss is {name!r}; expected a name and options with their values, such as gce(q=0.5)."
    )
    try:
        call = ast.parse(name, mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) else []
        values = {option.arg: ast.literal_eval(option.value) for option in keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refusal from error
    options = {key: value for key, value in values.items() if key is not None}
    if (
        not isinstance(call, ast.Call)
        or not isinstance(call.func, ast.Name)
        or call.args
        or len(options) < len(keywords)  # such as gce(**{})
    ):
        raise refusal
    return call.func.id, options


def check_loss_name(name: str, *groups: str) -> None:
    """Refuse a name that `resolve_loss` cannot know, without reading a file.

    Args:
      name: the name.
      groups: names that stand for several losses where this one is given.

    Raises:
      ConfigError: naming it and the known names.
    """
    names = dict.fromkeys(["cross_entropy", *PRETRAINED, *LOSSES, *groups])
    name, _ = split_loss_name(name)
    is_text = isinstance(name, str)
    if not is_text or (name not in names and not name.endswith(".safetensors")):
        known = ", ".join(names)
        raise ConfigError(f"loss is {name!r}; expected one of {known}, or a file *.safetensors.")


def resolve_loss(
    name: str,
    options: Mapping[str, Any] = types.MappingProxyType({}),
    *,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Loss:
    """The loss of a name: logits and labels to per-example losses.

    Args:
      name: one of `LOSSES` or `PRETRAINED`, or the path of a loss file (`*.safetensors`); one of
        `LOSSES` may have options behind it, such as `focal(gamma=1.0)`.
      options: keyword arguments of a loss of `LOSSES`, where the name says nothing else.
      class_counts: number of training examples of each class, for the losses that take it.

    Returns:
      A function of `LOSSES` with its options, a new instance of a module class of `LOSSES`, or an
      `EvolvedLoss`.

    Raises:
      ConfigError: for an unknown name, an unknown option or a value it cannot have; for options of
        an evolved loss; where class counts are needed and missing.
      LossFileError: if the file cannot be used.
    """
    check_loss_name(name)
    name, own = split_loss_name(name)
    options = {**options, **own}
    if name not in LOSSES:
        if options:
            raise ConfigError(f"{name!r} is an evolved loss and has no options; got {options}.")
        return load_pretrained(name) if name in PRETRAINED else EvolvedLoss.load(Path(name))

    part = LOSSES[name]
    # Of a class, its `__init__`: the metaclass of NNX hides it from `inspect`.
    parameters = inspect.signature(part.__init__ if isinstance(part, type) else part).parameters
    known = [
        key
        for key, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in _NOT_OPTIONS
    ]
    for key in options:
        if key not in known:
            expected = f"expected one of {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"the loss {name!r} has no option {key!r}; {expected}.")
    if isinstance(part, type):
        return part(**options)
    loss = functools.partial(part, **options)
    if "class_counts" in parameters:
        if class_counts is None:
            raise ConfigError(
                f"the loss {name!r} needs class_counts, the number of training examples of each "
                "class."
            )
        loss = functools.partial(loss, class_counts=tuple(np.asarray(class_counts).tolist()))
    _check_values(name, loss, 2 if class_counts is None else len(class_counts))
    return loss


def describe_loss(loss: Callable[..., Any]) -> str:
    """What tells a loss from another.

    A digest of an evolved loss's or a module's arrays and structure; of a function its name and all
    its options, the defaults included, and the values that it took from where it was made; of any
    other object its class and attributes; and of what is not of this package a digest of the code.
    Global variables and other functions that the code refers to are not looked at.
    """
    if isinstance(loss, functools.partial):
        return _named(loss.func) + _listed({**dict(enumerate(loss.args)), **_defaults(loss)})
    if isinstance(loss, types.FunctionType):
        return _named(loss) + _listed(_defaults(loss))
    return _named(loss)


def _defaults(loss: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function or a partial, with their values."""
    return {
        key: parameter.default
        for key, parameter in inspect.signature(loss).parameters.items()
        if parameter.default is not parameter.empty and key not in ("axis", "where")
    }


def _named(loss: Callable[..., Any]) -> str:
    """What a loss is but for its options: arrays; name, code and closure; object; attributes."""
    if isinstance(loss, EvolvedLoss):
        return f"EvolvedLoss {_digest(repr(loss.architecture), loss)}"
    if isinstance(loss, nnx.Module):
        graphdef, state = nnx.split(loss)
        return f"{_class_of(loss)} {_digest(repr(graphdef), state)}"
    if isinstance(loss, types.FunctionType):
        values = (cell.cell_contents for cell in loss.__closure__ or ())
        taken = dict(zip(loss.__code__.co_freevars, values, strict=True))
        return loss.__qualname__ + _code_of(loss) + _listed(taken)
    if isinstance(loss, types.MethodType):
        return describe_loss(loss.__func__) + _listed({"self": loss.__self__})
    wrapped = getattr(loss, "__wrapped__", None)
    if wrapped is not None:  # such as of what jax.jit gives
        return describe_loss(wrapped)
    if hasattr(loss, "__qualname__"):  # a class, or a function written in C
        return loss.__qualname__
    return _class_of(loss) + _listed(getattr(loss, "__dict__", {}))


def _class_of(loss: Callable[..., Any]) -> str:
    call = getattr(type(loss), "__call__", None)  # noqa: B004, as its code is wanted
    return type(loss).__qualname__ + _code_of(call)


def _code_of(function: Any) -> str:
    """A digest of a function's code, after a space; nothing of one that is of this package."""
    ours = __name__.partition(".")[0]
    if not isinstance(function, types.FunctionType) or function.__module__.startswith(f"{ours}."):
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


def _listed(values: Mapping[Any, Any]) -> str:
    def told(value: Any) -> str:
        if callable(value):
            return describe_loss(value)
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{key!r}: {told(x)}' for key, x in value.items())}}}"
        if isinstance(value, list | tuple):
            return f"({', '.join(map(told, value))})"
        if type(value).__repr__ is object.__repr__:  # which tells where it lies in memory
            return type(value).__qualname__ + _listed(getattr(value, "__dict__", {}))
        if np.size(value) > _FEW and isinstance(value, jax.Array | np.ndarray):
            return f"array {_digest(f'{value.shape} {value.dtype}', value)}"
        return repr(_plain(value))

    listed = ", ".join(f"{key}={told(value)}" for key, value in values.items())
    return f"({listed})" if listed else ""


def _check_values(name: str, loss: Loss, num_classes: int) -> None:
    """Trace the loss once, so that it refuses what it cannot work with before data is loaded."""
    logits = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
    try:
        jax.eval_shape(loss, logits, jax.ShapeDtypeStruct((1,), jnp.int32))
    except EDLError as error:
        raise ConfigError(f"the loss {name!r}: {error}") from error
    except (TypeError, ValueError) as error:
        options = loss.keywords if isinstance(loss, functools.partial) else {}
        raise ConfigError(f"the loss {name!r} cannot work with {options}: {error}") from error


def _digest(structure: str, arrays: Any) -> str:
    digest = hashlib.sha256(structure.encode())
    for array in jax.tree.leaves(arrays):
        is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(array) if is_key else array).tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, jax.Array | np.ndarray) else value
