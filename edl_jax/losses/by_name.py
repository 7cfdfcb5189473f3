"""Losses by name."""

import ast
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import ConfigError, EDLError
from edl_jax.losses import LOSSES, PRETRAINED, EvolvedLoss, load_pretrained

Loss = Callable[[jax.Array, jax.Array], jax.Array]

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
