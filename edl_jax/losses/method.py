"""A loss while a classifier trains with it: its state, and what it may see of the classifier."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct

from edl_jax.errors import ConfigError, EDLError, shortened
from edl_jax.losses.searched import Losses
from edl_jax.registry import Registry

# Of learned losses: subclasses of `LossMethod` or `SearchedLoss`; `edl_jax.methods` fills it.
METHODS: Registry[Any] = Registry("method")


class Student(NamedTuple):
    """What a loss sees of the classifier after a training step.

    Attributes:
      step: steps taken, this one included, int32 scalar.
      progress: share of the training's steps that are taken, float32 scalar; 1 after the last.
      logits: those that the step's losses were of, `[batch, num_classes]`: this device's share.
      labels: theirs, `[batch]` int32; with mixup or cutmix soft, `[batch, num_classes]` float32.
      validation: `() -> (logits, labels)`, as above but of the next `batch_size` validation images
        in turn, the same on every device, as the classifier sees them now. Computed only where
        it is called; needs `val_examples`, and images in memory.
      lookahead: `(losses, steps) -> (logits, labels)`: what `validation` would give so many steps
        on, had the classifier been trained with `losses(logits, labels) -> [batch]` on
        the batches that come next (after an epoch's last its first again), by its own optimizer.
        Differentiable in all that `losses` reads, which has to be equal on all devices, as the
        derivatives are.
    """

    step: jax.Array
    progress: jax.Array
    logits: jax.Array
    labels: jax.Array
    validation: Callable[[], tuple[jax.Array, jax.Array]]
    lookahead: Callable[[Losses, int], tuple[jax.Array, jax.Array]]


class LossMethod(abc.ABC):
    """Base class of losses with a state, for `train`; docs/extend.md has an example.

    The state is any pytree of arrays that keeps its structure, shapes and dtypes. Its `nnx.Param`
    are trained with the classifier, by its optimizer and without weight decay; all else is carried
    from step to step and through checkpoints.
    """

    def init(self, key: jax.Array, num_classes: int) -> Any:
        """Return the state before the first step; empty by default."""
        return ()

    @abc.abstractmethod
    def losses(self, state: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return floating-point losses `[batch]`; their mean trains the classifier and the state.

        Logits are `[batch, num_classes]` float32, a device's share; labels `[batch]` int32, or with
        mixup or cutmix `[batch, num_classes]` float32.
        """

    def update(self, state: Any, student: Student) -> Any:
        """Return the state for the next step; unchanged by default.

        Called once after every step, when `nnx.Param` have been trained, on each device with its
        share: floating-point arrays are then averaged, and all others must come out equal.
        """
        return state


class _Function(LossMethod):
    """A function of logits and labels: no state."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def losses(self, state: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return self.function(logits, labels)


class _Module(LossMethod):
    """A module: its state is its variables; a call after the step leaves those that it updates."""

    def __init__(self, module: nnx.Module):
        self.graph, self.initial = nnx.split(module)

    def init(self, key: jax.Array, num_classes: int) -> Any:
        return self.initial

    def losses(self, state: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
        # Copied, because a module may only update variables made at its own level of tracing.
        return nnx.merge(self.graph, state, copy=True)(logits, labels)

    def update(self, state: Any, student: Student) -> Any:
        module = nnx.merge(self.graph, state, copy=True)
        module(student.logits, student.labels)
        return nnx.state(module)


def as_method(loss: Any) -> LossMethod:
    """A function, an `EvolvedLoss` or an `nnx.Module` as a `LossMethod`; one of these as it is."""
    if isinstance(loss, LossMethod):
        return loss
    return _Module(loss) if isinstance(loss, nnx.Module) else _Function(loss)


class _Key(struct.PyTreeNode):
    """A random key as its words, which checkpoints can hold."""

    words: jax.Array
    kind: Any = struct.field(pytree_node=False)


def as_words(state: Any) -> Any:
    """A state as training holds it, random keys as their words."""

    def held(x: Any) -> Any:
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return _Key(jax.random.key_data(x), jax.random.key_impl(x)) if is_key else jnp.asarray(x)

    return jax.tree.map(held, state)


def as_keys(state: Any) -> Any:
    """The state that `as_words` was given."""

    def given(x: Any) -> Any:
        return jax.random.wrap_key_data(x.words, impl=x.kind) if isinstance(x, _Key) else x

    return jax.tree.map(given, state, is_leaf=lambda x: isinstance(x, _Key))


def take_apart(state: Any) -> tuple[Any, Any]:
    """A state as training holds it: `nnx.Param`, and the rest, keys as words; None elsewhere."""

    def those(trained: bool) -> Any:
        return jax.tree.map(
            lambda x: x if isinstance(x, nnx.Param) == trained else None, state, is_leaf=_is_leaf
        )

    state = as_words(state)
    return those(True), those(False)


def put_together(params: Any, rest: Any) -> Any:
    """The state that `take_apart` took apart."""
    whole = jax.tree.map(lambda x, y: y if x is None else x, params, rest, is_leaf=_is_leaf)
    return as_keys(whole)


def _is_leaf(x: object) -> bool:
    return x is None or isinstance(x, nnx.Variable)


def check_loss(loss: Any, num_classes: int, *, soft: bool) -> bool:
    """Whether a loss looks at validation images; refuses what is none for such labels."""
    method, asked = as_method(loss), []
    batch = num_classes + 1  # not to be confused with the classes
    logits = jax.ShapeDtypeStruct((batch, num_classes), jnp.float32)
    classes = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(logits: jax.Array, labels: jax.Array, held_out: Any) -> Any:
        def validation() -> tuple[jax.Array, jax.Array]:
            asked.append(True)
            return held_out

        def lookahead(losses: Losses, steps: int) -> tuple[jax.Array, jax.Array]:
            losses(logits, labels)
            return validation()

        state = method.init(jax.random.key(0), num_classes)
        losses = method.losses(state, logits, labels)
        student = Student(jnp.int32(1), jnp.float32(0.5), logits, labels, validation, lookahead)
        return losses, take_apart(state), take_apart(method.update(state, student))

    labels = logits if soft else classes
    arguments = f"logits {_in_words(logits)} and labels {_in_words(labels)}"
    name = f"the loss {getattr(loss, '__qualname__', None) or shortened(repr(loss), 100)}"
    try:
        losses, *states = jax.eval_shape(step, logits, labels, (logits, classes))
    except EDLError:
        raise
    except Exception as error:  # the loss is the user's own code
        reason = shortened(f"{type(error).__name__}: {error}")
        raise ConfigError(f"{name} cannot be called with {arguments} ({reason}).") from error
    output, before, after = (jax.tree.map(_in_words, x) for x in (losses, *states))
    fits = getattr(losses, "shape", None) == (batch,)
    if not fits or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ConfigError(
            f"{name} gives {shortened(output)} for {arguments}; expected float32[{batch}], one "
            "value for each example."
        )
    if before != after:
        raise ConfigError(
            f"{name} leaves a state of {shortened(jax.tree.leaves(after))} instead of "
            f"{shortened(jax.tree.leaves(before))}; expected the same shapes and dtypes."
        )
    return bool(asked)


def _in_words(x: jax.ShapeDtypeStruct) -> str:
    return f"{x.dtype}{[*x.shape]}"
