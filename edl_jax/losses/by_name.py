"""Losses by name: formulas with options, shipped losses, loss files."""

import ast
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edl_jax.errors import ConfigError
from edl_jax.losses.evolved_loss import EvolvedLoss
from edl_jax.losses.lift import LOSSES
from edl_jax.losses.method import METHODS, LossMethod
from edl_jax.losses.searched import SearchedLoss

Loss = Callable[[jax.Array, jax.Array], jax.Array]

# Each was made by the config of its name, configs/pretrain_*.py, at the commit that results/ names.
PRETRAINED = {
    "edl": "for any number of classes, ordered by surprisal",
    "edl-robust": "for any number of classes, for labels of which many are wrong",
    "edl-paper": "the paper's plain recipe, for 10 classes only",
}


def load_pretrained(name: str = "edl") -> EvolvedLoss:
    """Load a shipped loss by its name in `PRETRAINED`. Raises ConfigError for other names."""
    if name not in [*PRETRAINED]:
        raise ConfigError(
            f"there is no pretrained loss {name!r}; expected one of {', '.join(PRETRAINED)}, or a "
            "file for EvolvedLoss.load."
        )
    return EvolvedLoss.load(Path(__file__).with_name(f"{name}.safetensors"))


def list_losses() -> list[tuple[str, str, str]]:
    """Of every loss its name, the first line of its docstring, its references on one line."""
    listed = []
    for name, part in {**LOSSES, **dict.fromkeys(PRETRAINED, EvolvedLoss)}.items():
        summary, references = _summary(part)
        if name in PRETRAINED:
            summary = f"An evolved loss, {PRETRAINED[name]}."
        listed.append((name, summary, references))
    return listed


def list_methods() -> list[tuple[str, str, str, str]]:
    """Of every learned loss its name, what it is, what data it looks at, its references."""
    return [
        (name, *_summary(part), f"It looks at {part.looks_at}.") for name, part in METHODS.items()
    ]


def _summary(part: Any) -> tuple[str, str]:
    """The first line of a docstring, and its references on one line."""
    summary, _, rest = (inspect.getdoc(part) or "").partition("\n")
    references = rest.partition("\nReferences:\n")[2].partition("\n\n")[0]
    return summary, " ".join(references.split())


def split_loss_name(name: str) -> tuple[str, dict[str, Any]]:
    """A loss's name alone, and the options behind it: `gce(q=0.5)` is `gce` and `{"q": 0.5}`."""
    if not isinstance(name, str) or not name.endswith(")"):
        return name, {}
    try:
        match ast.parse(name, mode="eval").body:
            case ast.Call(ast.Name(alone), [], given):
                options = {str(x.arg): ast.literal_eval(x.value) for x in given if x.arg}
                if len(options) == len(given):  # none with ** and none twice
                    return alone, options
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise ConfigError(
        f"loss is {name!r}; expected a name and options with their values, each once: gce(q=0.5)."
    )


def scale_of(name: str) -> str | None:
    """What the option `scale` of a loss is the scale of, which says the loss; see `formula`."""
    return getattr(LOSSES.get(split_loss_name(name)[0]), "scale_of", None)


def check_loss_name(name: str, *groups: str) -> None:
    """Refuse a name that is none of `resolve_loss` or `groups`, without reading a file."""
    names = [*dict.fromkeys(["cross_entropy", *PRETRAINED, *LOSSES, *METHODS, *groups])]
    name, _ = split_loss_name(name)
    if name not in names and not str(name).endswith(".safetensors"):
        known = ", ".join(names)
        raise ConfigError(f"loss is {name!r}; expected one of {known}, or a file *.safetensors.")


def resolve_method(name: str) -> LossMethod | SearchedLoss | None:
    """The learned loss that a name and options stand for, `elf(generations=5)`; None if none."""
    name, options = split_loss_name(name)
    if name not in METHODS or (name in PRETRAINED and not options):
        return None
    try:
        return METHODS[name](**options)
    except TypeError as error:
        if name in PRETRAINED:  # options of neither
            return None
        known = ", ".join(inspect.signature(METHODS[name]).parameters)
        raise ConfigError(f"the learned loss {name!r}, with options {known}: {error}") from error


def resolve_loss(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Loss:
    """The loss of a name: logits and labels to per-example losses.

    `options` are keyword arguments of a loss of `LOSSES`, where the name, such as
    `focal(gamma=1.0)`, says nothing else; `class_counts` the number of training examples of each
    class, for the losses that take it. What cannot work is a ConfigError, or a LossFileError.
    """
    check_loss_name(name)
    if resolve_method(name) is not None:
        raise ConfigError(f"{name!r} is learned by a training; expected a loss that is, or a file.")
    name, own = split_loss_name(name)
    options = {**(options or {}), **own}
    if name not in LOSSES:
        if options:
            raise ConfigError(f"{name!r} is an evolved loss and has no options; got {options}.")
        return load_pretrained(name) if name in PRETRAINED else EvolvedLoss.load(Path(name))

    part = LOSSES[name]
    # Of a class, its `__init__`: the metaclass of NNX hides it from `inspect`.
    signature = inspect.signature(part.__init__ if isinstance(part, type) else part)
    parameters = [x.name for x in signature.parameters.values() if x.kind is x.KEYWORD_ONLY]
    if "class_counts" in parameters and class_counts is not None:
        options["class_counts"] = tuple(np.asarray(class_counts).tolist())
    num_classes = 2 if class_counts is None else len(class_counts)
    logits = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
    try:
        if isinstance(part, type):
            return part(**options)
        loss = functools.partial(part, **options)
        # Traced once, so that it refuses what it cannot work with before anything is trained.
        jax.eval_shape(loss, logits, jax.ShapeDtypeStruct((1,), jnp.int32))
    except (TypeError, ValueError) as error:  # ours are among them
        known = ", ".join(key for key in parameters if key not in ("axis", "where")) or "none"
        raise ConfigError(f"the loss {name!r}, with options {known}: {error}") from error
    return loss
