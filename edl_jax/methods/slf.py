"""SLF: losses of a given set, picked by random gates that are learned (Liu and Lai, AAAI 2020).

The paper's: a gate for each loss of a set, on or off at random by Gumbel-softmax; the losses whose
gates are on are added; the gates' parameters are learned by gradients, along with the classifier.

Ours, since the paper leaves it open or we could not read it:
- The gates learn from validation images: their gradient is that of the validation cross-entropy
  after a few further steps. On the training loss they would choose whichever loss is smallest.
- The decision network is one number for each gate, without an input.
- Each loss is scaled to cross-entropy's mean gradient length by logits, on random logits with
  labels drawn from their softmax, and the weights of the gates are divided by their sum. So gates
  choose the kind of loss, not the length of the step. (Scaled on the batches of the training, a
  loss that is nearly at its minimum would grow without bound.)
- The set, the temperatures (they fall geometrically), and how the gates learn: by Adam, within 3
  of 0.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from annotated_types import MinLen
from flax import nnx

from edl_jax.checked import Checked, Count, Distinct, Positive
from edl_jax.errors import ConfigError
from edl_jax.losses.by_name import resolve_loss
from edl_jax.losses.method import METHODS, LossMethod, Student
from edl_jax.losses.searched import Losses, SearchedLoss

_LIMIT = 3.0  # of a gate, which is then on in 95 % of the steps: it can still change
_PAIRS, _SPREAD = 1000, 3.0  # random logits by which losses are scaled: how many, and their std


@METHODS.register("slf")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SLF(Checked, LossMethod):
    """A mean of given losses, picked by random gates that learn from validation images.

    References:
      Liu and Lai, Stochastic Loss Function, AAAI 2020.
    """

    looks_at: ClassVar[str] = "training images, and labels of validation images"

    candidates: Annotated[tuple[str, ...], MinLen(1), Distinct()] = (
        "cross_entropy",
        "focal",
        "poly",
        "label_smoothing",
        "gce",
        "mae",
    )
    """The losses to pick from, by name, with options if needed."""
    every: Count = 5
    """Number of steps between two updates of the gates."""
    steps: Count = 1
    """Number of further steps after which the validation loss teaches the gates."""
    learning_rate: Positive = 0.2
    """Learning rate of the gates."""
    temperature: Positive = 2.0
    """Temperature of the Gumbel-softmax at the start; high ones blend the losses."""
    final_temperature: Positive = 1.0
    """Temperature at the end; low ones turn each loss on or off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.candidates:
            if isinstance(resolve_loss(name), LossMethod | SearchedLoss | nnx.Module):
                raise ConfigError(
                    f"SLF.candidates names {name!r}, which has a state or is yet to be found; "
                    "expected losses that are functions of logits and labels alone."
                )

    @property
    def _set(self) -> list[Losses]:
        return [resolve_loss(name) for name in self.candidates]  # pyright: ignore

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b2=0.9)  # gradients shrink as the classifier learns

    def init(self, key: jax.Array, num_classes: int) -> Any:
        """All gates are on half of the time."""
        gates = jnp.zeros(len(self.candidates), jnp.float32)
        key, key_logits, key_labels = jax.random.split(key, 3)
        logits = _SPREAD * jax.random.normal(key_logits, (_PAIRS, num_classes), jnp.float32)
        labels = jax.random.categorical(key_labels, logits)  # as probable as the logits say
        return {
            "gates": gates,
            "adam": self._adam.init(gates),
            "scales": scales_of(self._set, logits, labels),
            "temperature": jnp.float32(self.temperature),
            "key": key,
        }

    def losses(self, state: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The scaled losses, weighted by the gates of the step, which the key draws."""
        weights = gate_weights(state["key"], state["gates"], state["temperature"])
        values = jnp.stack([loss(logits, labels) for loss in self._set])
        return (weights * state["scales"]) @ values

    def update(self, state: Any, student: Student) -> Any:
        """Draw the next gates; every so many steps, learn from the validation loss ahead."""
        key, key_ahead = jax.random.split(state["key"])
        cooled = (self.final_temperature / self.temperature) ** student.progress
        state = {
            **state,
            "temperature": jnp.float32(self.temperature) * cooled,
            "key": key,
        }

        def ahead(gates: jax.Array) -> jax.Array:
            losses = partial(self.losses, {**state, "gates": gates, "key": key_ahead})
            logits, labels = student.lookahead(losses, self.steps)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def learned() -> tuple[jax.Array, Any]:
            gradient = jax.grad(ahead)(state["gates"])
            with jax.numpy_dtype_promotion("standard"):  # which Adam needs
                updates, adam = self._adam.update(gradient, state["adam"])
            return jnp.clip(state["gates"] + updates, -_LIMIT, _LIMIT), adam

        as_before = lambda: (state["gates"], state["adam"])  # noqa: E731
        gates, adam = jax.lax.cond(student.step % self.every == 0, learned, as_before)
        return {**state, "gates": gates, "adam": adam}


def gate_weights(key: jax.Array, gates: jax.Array, temperature: jax.Array) -> jax.Array:
    """Random weights of the losses, `[losses]`; they sum to 1, and differentiate by the gates.

    A gate is `sigmoid((gate + noise) / temperature)`, a Gumbel-softmax of on and off: the noise, a
    difference of two Gumbel variables, is logistic. At temperature 0 it is on with probability
    `sigmoid(gate)`, and the losses that are on have equal weights.
    """
    noise = jax.random.logistic(key, gates.shape, jnp.float32)
    return jax.nn.softmax(jax.nn.log_sigmoid((gates + noise) / temperature))


def scales_of(losses: Sequence[Losses], logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Factors `[losses]` that give each cross-entropy's mean gradient length by the logits."""
    cross_entropy: Any = resolve_loss("cross_entropy")

    def length(loss: Losses) -> jax.Array:
        gradients = jax.grad(lambda x: loss(x, labels).sum())(logits)
        return jnp.linalg.norm(gradients, axis=-1).mean()

    return jnp.stack([length(cross_entropy) / length(loss) for loss in losses])
