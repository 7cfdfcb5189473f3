"""The decorators that turn a formula into a loss as of optax, and what formulas read."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_origin

import jax
import jax.numpy as jnp
from jax.core import Tracer

from edl_jax.checked import check
from edl_jax.losses.inputs import log_softmax, per_example
from edl_jax.networks.loss_network import runner_up_of
from edl_jax.registry import Registry

ArrayLike = jax.typing.ArrayLike
Formula = Callable[..., jax.Array]

# A function of logits and labels, or an `nnx.Module` class whose instances are called like one.
LOSSES: Registry[Callable[..., Any]] = Registry("loss")


class Candidates(NamedTuple):
    """What a formula reads: a prediction, and the classes that stand as its label.

    A formula gives losses `[..., n]`: `n = 1` for classes; `n = num_classes` for soft labels.

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
        shape = self.every_log_p.shape
        classes = self.at(jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1))
        return runner_up_of(self.every_log_p)(classes, self.log_p())

    def mean(self, values: jax.Array) -> jax.Array:
        """Mean `[..., 1]` of `[..., num_classes]` over the classes that take part; 0 if none."""
        return jnp.sum(values, axis=-1, where=self.where, keepdims=True) / self.num_classes()

    def num_classes(self) -> jax.Array | int:
        """Number of classes that take part, at least 1: `[..., 1]`, or a number without a mask."""
        if self.where is None:
            return self.logits.shape[-1]
        count = jnp.sum(self.where, axis=-1, keepdims=True)
        return jnp.maximum(count, 1).astype(self.logits.dtype)


def formula(function: Formula, scale_of: Literal["logits", "cosines"] | None = None) -> Formula:
    """Register a formula as a loss: `(candidates, *, options) -> [..., n]`.

    The loss has the function's name and options and is called like an `EvolvedLoss`. Bounds in an
    option's annotation, such as `Annotated[float, Ge(0)]`, are checked.

    With `scale_of`, also an attribute of the loss, training sets the option `scale` to its
    `head_scale`, or without one to 1; a loss of "cosines" needs one. docs/extend.md has an example.
    """
    loss = _registered(function, _of_candidates)
    loss.scale_of = scale_of  # pyright: ignore[reportFunctionMemberAccess]
    return loss


def formula_of_weights(function: Formula) -> Formula:
    """Register a loss of a label distribution: `(logits, weights, where, *, options) -> [...]`.

    Logits and weights are `[..., num_classes]`, one-hot for a class; the mask too, or None. What a
    mask leaves of a label is scaled to sum to 1, and the loss multiplied by what it summed to.
    """
    return _registered(function, _of_distributions)


def _of_candidates(function: Formula, *arguments: Any) -> jax.Array:
    """Losses `[...]` of a formula of candidates; arguments as of `per_example`."""

    def at(x: jax.Array, label: jax.Array | None, mask: jax.Array | None) -> jax.Array:
        return function(Candidates(x, log_softmax(x, mask), mask, label))

    return per_example(
        *arguments,
        of_classes=lambda x, label, mask: at(x, label[..., None], mask)[..., 0],
        of_weights=lambda x, weights, mask: jnp.sum(weights * at(x, None, mask), axis=-1),
    )


def _of_distributions(function: Formula, *arguments: Any) -> jax.Array:
    def of_weights(x: jax.Array, weights: jax.Array, mask: jax.Array | None) -> jax.Array:
        if mask is None:
            return function(x, weights, None)
        total = jnp.sum(weights, axis=-1)
        safe = jnp.where(total > 0, total, 1.0)
        return total * function(x, weights / safe[..., None], mask)

    return per_example(
        *arguments,
        of_classes=lambda x, label, mask: function(
            x, jax.nn.one_hot(label, x.shape[-1], dtype=x.dtype), mask
        ),
        of_weights=of_weights,
    )


def _registered(function: Formula, evaluate: Formula) -> Formula:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    options = [x for x in parameters if x.kind is x.KEYWORD_ONLY]
    bounds = {x.name: x.annotation for x in options if get_origin(x.annotation) is Annotated}

    @functools.wraps(function)
    def loss(
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        axis: int = -1,
        where: ArrayLike | None = None,
        **settings: Any,
    ) -> jax.Array:
        for name, value in settings.items():
            if isinstance(value, jax.Array) and not isinstance(value, Tracer) and not value.ndim:
                value = value.item()
            if name in bounds and not isinstance(value, jax.Array):
                check(name, value, bounds[name])
        return evaluate(functools.partial(function, **settings), logits, labels, axis, where)

    *arrays, axis, where, _ = inspect.signature(loss, follow_wrapped=False).parameters.values()
    signature = inspect.Signature([*arrays, *options, axis, where], return_annotation=jax.Array)
    loss.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    loss.described_as = function  # pyright: ignore[reportAttributeAccessIssue]
    return LOSSES.register(function.__name__)(loss)
