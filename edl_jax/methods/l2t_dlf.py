"""L2T-DLF: a teacher that sets the loss by the student's state (Wu et al., NeurIPS 2018).

The paper's: the loss `-sigmoid(y' (W' log p + b))`; a teacher that maps the student's state to `W`
and `b` by attention; its training by the derivative of a smooth validation metric through the
student's steps. From the authors' demo: `W` begins as the identity and `b` as 0.

Ours, since the paper leaves it open or does otherwise: the teacher learns within one training of
the student, not over many, and looks a few of its steps ahead; what of the student it sees, and the
form of the attention; validation cross-entropy as the metric; Adam; and the factor 4, by which the
first loss has the gradient of cross-entropy where `p_y` is 1. Its first loss is `-4 p / (1 + p)` of
`p = p_y`, between cross-entropy and mean absolute error.
"""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from edl_jax.checked import Checked, Count, NotNegative
from edl_jax.losses.method import METHODS, LossMethod, Student

_FEATURES = 6  # progress; loss, accuracy and margin in training; loss and accuracy in validation
_DECAY = 0.9  # of the means over training batches


@METHODS.register("l2t_dlf")
@dataclasses.dataclass(frozen=True, kw_only=True)
class L2TDLF(LossMethod, Checked):
    """A matrix that weighs log-probabilities by class, set by a teacher that watches the student.

    References:
      Wu et al., Learning to Teach with Dynamic Loss Functions, NeurIPS 2018.
      https://arxiv.org/abs/1810.12081
    """

    looks_at: ClassVar[str] = "training images, and validation images with their labels"

    steps: Count = 15
    """How many steps of the student the teacher looks ahead."""
    every: Count = 15
    """How often the teacher looks ahead, learns and sets the loss, in steps."""
    learning_rate: NotNegative = 0.002
    """Learning rate of the teacher, by Adam; 0 keeps the first loss."""
    slots: Count = 8
    """Number of matrices, which the teacher weighs by the student's state."""

    def init(self, key: jax.Array, num_classes: int) -> dict[str, Any]:
        """The teacher, its optimizer, and what it has seen of the student, who knows nothing."""
        teacher = {
            "keys": jax.random.normal(key, (self.slots, _FEATURES), jnp.float32),
            "matrices": jnp.zeros((self.slots, num_classes, num_classes), jnp.float32),
            "biases": jnp.zeros((self.slots, num_classes), jnp.float32),
        }
        chance = 1 / num_classes
        return {
            "teacher": teacher,
            "optimizer": optax.adam(self.learning_rate).init(teacher),
            "train": jnp.asarray([1.0, chance, 0.0], jnp.float32),
            "seen": jnp.asarray([0.0, 1.0, chance, 0.0, 1.0, chance], jnp.float32),
        }

    def losses(self, state: dict[str, Any], logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss that the teacher has set."""
        return taught_losses(*coefficients(state["teacher"], state["seen"]), logits, labels)

    def update(self, state: dict[str, Any], student: Student) -> dict[str, Any]:
        """Follow the student, and every so many steps look ahead, learn, and set the loss anew."""

        def teach(state: dict[str, Any]) -> dict[str, Any]:
            # All equal on all devices: the training means are those of the step before.
            progress, held_out = student.progress[None], measured(*student.validation())
            seen = jnp.concatenate([progress, state["train"], held_out[:2]])

            def ahead(teacher: Any) -> jax.Array:
                of_batch = partial(taught_losses, *coefficients(teacher, seen))
                logits, labels = student.lookahead(of_batch, self.steps)
                cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
                return cross_entropy(logits, labels).mean()

            gradient = jax.grad(ahead)(state["teacher"])
            adam = optax.adam(self.learning_rate)
            with jax.numpy_dtype_promotion("standard"):  # which Adam needs
                change, optimizer = adam.update(gradient, state["optimizer"])
            teacher = optax.apply_updates(state["teacher"], change)
            return {**state, "teacher": teacher, "optimizer": optimizer, "seen": seen}

        taught = jax.lax.cond(student.step % self.every == 0, teach, lambda state: state, state)
        now = measured(student.logits, student.labels)
        return {**taught, "train": _DECAY * state["train"] + (1 - _DECAY) * now}


def coefficients(teacher: dict[str, jax.Array], seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The matrix `[num_classes, num_classes]` and the bias `[num_classes]` of the loss.

    The identity and 0, plus the slots' matrices and biases, weighed by the softmax of the products
    of their keys with the features that were seen.
    """
    weights = jax.nn.softmax(_product("sf,f->s", teacher["keys"], seen))
    change = _product("s,sij->ij", weights, teacher["matrices"])
    matrix = jnp.eye(len(change), dtype=change.dtype) + change
    return matrix, _product("s,si->i", weights, teacher["biases"])


def taught_losses(
    matrix: jax.Array, bias: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """`-4 sigmoid(y' (W' log p + b))`, `[batch]`; labels are classes or soft."""
    scores = _product("bi,ij->bj", jax.nn.log_softmax(logits), matrix) + bias
    return -4 * jax.nn.sigmoid(jnp.sum(as_weights(labels, logits) * scores, axis=-1))


def measured(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Means `[3]`: cross-entropy, over that of a guess; accuracy; `p_y` less the next largest."""
    weights = as_weights(labels, logits)
    of_label = jnp.argmax(weights, axis=-1, keepdims=True)
    p = jax.nn.softmax(logits)
    p_y = jnp.take_along_axis(p, of_label, axis=-1)
    is_label = jnp.arange(p.shape[-1]) == of_label
    margin = p_y[..., 0] - jnp.max(p, axis=-1, where=~is_label, initial=0)
    loss = optax.losses.softmax_cross_entropy(logits, weights) / math.log(logits.shape[-1])
    return jnp.stack([loss.mean(), jnp.mean(margin > 0, dtype=loss.dtype), margin.mean()])


def as_weights(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Labels as distributions over the classes."""
    is_soft = labels.ndim == logits.ndim
    return labels if is_soft else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def _product(subscripts: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *arrays, precision="highest")
