"""A loss as a pure function, and the check that it is one of logits and labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.errors import ConfigError, EDLError
from edl_jax.losses.by_name import Loss

_FEW = 300  # letters of what may be long


class PureLoss(NamedTuple):
    """A loss whose parameters and state are handed in and out.

    Attributes:
      params: the `nnx.Param` of an `nnx.Module`, an NNX state; empty for other losses.
      state: whatever other arrays the module holds (counters, statistics, random streams), an NNX
        state; random keys as their words, so that a checkpoint can hold them.
      losses: `(params, state, logits, labels) -> (losses, state)`, the state as the call leaves it.
    """

    params: Any
    state: Any
    losses: Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def pure_loss(loss: Loss) -> PureLoss:
    """Take a loss apart; the module itself is never changed."""
    if not isinstance(loss, nnx.Module):
        none = nnx.State({})
        return PureLoss(none, none, lambda params, state, *args: (loss(*args), state))
    graph, params, given = nnx.split(loss, nnx.Param, ...)

    def losses(params: Any, state: Any, *args: jax.Array) -> tuple[jax.Array, Any]:
        module: Any = nnx.merge(graph, params, _with_keys(state, given), copy=True)
        values = module(*args)
        return values, _as_words(nnx.split(module, nnx.Param, ...)[2])

    return PureLoss(params, _as_words(given), losses)


def check_loss(loss: Any, num_classes: int, *, soft: bool) -> None:
    """Refuse what is no loss, by tracing it once.

    Args:
      loss: what was given.
      num_classes: classes of the data.
      soft: whether labels are soft, `[batch, num_classes]` float32, instead of `[batch]` int32.

    Raises:
      ConfigError: if it cannot be called with logits `[batch, num_classes]` and such labels, does
        not give `[batch]` floating-point losses, or changes the shapes or dtypes of its state.
    """
    check_callable(loss)
    batch = num_classes + 1  # not to be confused with the classes
    logits = jax.ShapeDtypeStruct((batch, num_classes), jnp.float32)
    labels = logits if soft else jax.ShapeDtypeStruct((batch,), jnp.int32)
    name = getattr(loss, "__qualname__", None) or type(loss).__qualname__
    given = f"logits {_told(logits)} and labels {_told(labels)}"
    pure = pure_loss(loss)
    try:
        losses, after = jax.eval_shape(pure.losses, pure.params, pure.state, logits, labels)
    except EDLError:
        raise
    except Exception as error:  # the loss is the user's own code
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:_FEW]
        raise ConfigError(f"the loss {name} cannot be called with {given} ({reason}).") from error
    is_array = isinstance(losses, jax.ShapeDtypeStruct) and losses.shape == (batch,)
    if not (is_array and jnp.issubdtype(losses.dtype, jnp.floating)):
        found = str(jax.tree.map(_told, losses))[:_FEW]
        raise ConfigError(
            f"the loss {name} gives {found} for {given}; expected float32[{batch}], one value for "
            "each example."
        )
    before = jax.eval_shape(lambda: pure.state)
    shapes = [jax.tree.map(_told, x) for x in (after, before)]
    if shapes[0] != shapes[1]:
        found, expected = (str(jax.tree.leaves(x))[:_FEW] for x in shapes)
        raise ConfigError(
            f"the loss {name} leaves variables of other shapes or dtypes than it had: {found} "
            f"instead of {expected}; expected the same."
        )


def check_callable(loss: Any) -> None:
    """Refuse what cannot be called, before any data is loaded.

    Raises:
      ConfigError: naming it.
    """
    if not callable(loss):
        raise ConfigError(
            f"loss is {repr(loss)[:_FEW]}; expected a name, such as 'edl', or a function of logits "
            "and labels."
        )


def _told(x: Any) -> str:
    return f"{x.dtype}{[*x.shape]}"


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _as_words(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else jnp.asarray(x), state)


def _with_keys(state: Any, like: Any) -> Any:
    def back(x: jax.Array, old: Any) -> jax.Array:
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old)) if _is_key(old) else x

    return jax.tree.map(back, state, like)
