"""The decorators that turn a formula into a loss with optax's signature, and what formulas read."""

import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from edl_jax.errors import ConfigError
from edl_jax.losses.inputs import check_inputs
from edl_jax.losses.log_probabilities import log_softmax
from edl_jax.networks.loss_network import runner_up_of
from edl_jax.registry import Registry

ArrayLike = jax.typing.ArrayLike
Formula = Callable[..., jax.Array]

# A function of logits and labels, or an `nnx.Module` class whose instances are called like one.
LOSSES: Registry[Callable[..., Any]] = Registry("loss")


class Candidates(NamedTuple):
    """What a formula reads: a prediction, and the classes that stand as its label.

    It gives losses `[..., n]`: `n = 1` for classes; `n = num_classes` for soft labels, which so
    cost a few more sums over the classes. What does not depend on the label is `[..., 1]`.

    Attributes:
      logits: `[..., num_classes]`, float32 at least, 0 where masked.
      every_log_p: log-probabilities of all classes, `[..., num_classes]`.
      where: mask of the classes, `[..., num_classes]`, or None.
      label: `[..., 1]`, or None for every class in turn.
    """

    logits: jax.Array
    every_log_p: jax.Array
    where: jax.Array | None
    label: jax.Array | None

    def at(self, values: jax.Array) -> jax.Array:
        """The candidates' `[..., n]` of values `[..., num_classes]`."""
        return values if self.label is None else jnp.take_along_axis(values, self.label, axis=-1)

    def log_p(self) -> jax.Array:
        """`log p_y`, `[..., n]`."""
        return self.at(self.every_log_p)

    def miss(self) -> jax.Array:
        """`1 - p_y`, `[..., n]`."""
        return -jnp.expm1(self.log_p())

    def runner_up(self) -> jax.Array:
        """The largest `log p` of the classes other than the label, `[..., n]`."""
        label, shape = self.label, self.every_log_p.shape
        if label is None:
            label = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        return runner_up_of(self.every_log_p)(label, self.log_p())

    def mean(self, values: jax.Array) -> jax.Array:
        """Mean `[..., 1]` of `[..., num_classes]` over the classes that take part; 0 if none."""
        return jnp.sum(values, axis=-1, where=self.where, keepdims=True) / self.num_classes()

    def num_classes(self) -> jax.Array | int:
        """Number of classes that take part, at least 1: `[..., 1]`, or a number without a mask."""
        if self.where is None:
            return self.logits.shape[-1]
        count = jnp.sum(self.where, axis=-1, keepdims=True)
        return jnp.maximum(count, 1).astype(self.logits.dtype)


def formula(function: Formula) -> Formula:
    """Register a formula as a loss: `(candidates, *, options) -> [..., n]`.

    The loss has the function's name, its options, an `axis`, a mask `where`, integer and soft
    labels, checks and the logits' dtype; of soft labels `w` it is `sum_k w_k L(x, k)`.

    >>> @formula
    ... def squared_miss(c, *, factor=1.0):
    ...     '''Squared probability of the other classes, `factor (1 - p_y)^2`.'''
    ...     return factor * c.miss() ** 2
    >>> LOSSES["squared_miss"](jnp.zeros((1, 2)), jnp.asarray([0]), factor=4.0)
    Array([1.], dtype=float32)
    """
    return _registered(function, per_example)


def formula_of_weights(function: Formula) -> Formula:
    """Register a loss of a label distribution: `(logits, weights, where, *, options) -> [...]`.

    Logits and weights are `[..., num_classes]`, one-hot for a class; the mask too, or None. Where a
    mask hides a part of a label, the rest is scaled to sum to 1 and the loss multiplied by what the
    rest summed to, so that masked classes add nothing here either.
    """

    def evaluate(function: Formula, *arguments: Any) -> jax.Array:
        x = check_inputs(*arguments)

        def of_soft(weights: jax.Array) -> jax.Array:
            if x.where is None:
                return function(x.logits, weights, None)
            total = jnp.sum(weights, axis=-1)
            safe = jnp.where(total > 0, total, 1.0)
            return total * function(x.logits, weights / safe[..., None], x.where)

        return x.losses(lambda y: function(x.logits, one_hot(y, x.logits), x.where), of_soft)

    return _registered(function, evaluate)


def per_example(function: Formula, *arguments: Any) -> jax.Array:
    """Losses `[...]` of a formula of candidates; arguments as of `check_inputs`."""
    x = check_inputs(*arguments)
    every = Candidates(x.logits, log_softmax(x.logits, x.where), x.where, None)
    return x.losses(
        lambda label: function(every._replace(label=label[..., None]))[..., 0],
        lambda weights: jnp.sum(weights * function(every), axis=-1),
    )


def _registered(function: Formula, evaluate: Formula) -> Formula:
    def loss(
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        axis: int = -1,
        where: ArrayLike | None = None,
        **options: Any,
    ) -> jax.Array:
        return evaluate(functools.partial(function, **options), logits, labels, axis, where)

    *arrays, axis, where, _ = inspect.signature(loss).parameters.values()
    own = inspect.signature(function).parameters.values()
    options = [x for x in own if x.kind is inspect.Parameter.KEYWORD_ONLY]
    signature = inspect.Signature([*arrays, *options, axis, where], return_annotation=jax.Array)
    loss.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    for name in ("__module__", "__name__", "__qualname__"):
        setattr(loss, name, getattr(function, name))
    loss.__doc__ = _documented(function)
    return LOSSES.register(function.__name__)(loss)


_SHARED = """{text}

Args:
  logits: `[..., num_classes]`, any floating dtype.
  labels: classes `[...]`, or soft labels `[..., num_classes]`.
{options}  axis: axis of the classes.
  where: mask of the examples, `[...]`, or of the classes, of the logits' rank.

Returns:
  Losses, `[...]`, in the logits' dtype.

Raises:
  InputError: if shapes, dtypes or labels do not fit.
  ConfigError: if an option is out of range.
{references}"""


def _documented(function: Formula) -> str:
    """The formula's docstring, with what all losses share in its `Args` and after them."""
    text, _, references = inspect.cleandoc(function.__doc__ or "").partition("\n\nReferences:\n")
    text, _, options = text.partition("\n\nArgs:\n")
    return _SHARED.format(
        text=text,
        options=options and f"{options}\n",
        references=references and f"\nReferences:\n{references}",
    )


def one_hot(labels: jax.Array, like: jax.Array) -> jax.Array:
    """Classes `[...]` as weights, of the shape and dtype of `like`, `[..., num_classes]`."""
    return jax.nn.one_hot(labels, like.shape[-1], dtype=like.dtype)


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    whole: bool = False,
    known: bool = False,
) -> None:
    """Refuse an option that is no number in `[low, high]`, or `(low, high]` if `open_low`.

    Arrays pass, as their values may not be known, unless it has to be whole or `known`.
    """
    number, is_traced = value, isinstance(value, Tracer)
    if isinstance(value, jax.Array) and not whole:
        if not known:
            return
        number = None if is_traced or value.ndim else value.item()
    elif isinstance(value, np.generic):
        number = value.item()
    # Fractions are numbers too, but none that JAX can multiply by.
    if not isinstance(number, int if whole else int | float) or isinstance(number, bool):
        number = math.nan
    in_range = low < number <= high if open_low else low <= number <= high
    if not in_range or not abs(number) <= sys.float_info.max:
        expected = f"more than {low}" if open_low else f"at least {low}"
        if math.isfinite(high):
            expected += f" and at most {high}"
        if is_traced:
            expected += ", and not traced"
        number = "whole number" if whole else "finite number"
        raise ConfigError(f"{name} is {value!r}; expected a {number}, {expected}.")
