"""ALA: a matrix of class correlations that a policy changes (Huang et al., ICML 2019).

The paper's: the loss `-sigmoid(y' Phi log p)`, with Phi the identity at first; a policy that maps
the state of the training (progress, validation metric and its change, Phi) to a change of Phi;
episodes of one decision, rewarded by the improvement of the validation metric; learned by REINFORCE
with a baseline, from several children.

Ours, since the paper leaves it open or we could not read it:
- The children are the classifier itself some steps ahead, each under a Phi of its own, on the same
  batches. They explore; the training goes on with the change that the policy makes on average, so
  that a policy that has learned nothing leaves the loss as it is. There is no replay.
- The baseline of a child is the mean reward of the others, which leaves the gradient unbiased.
- One small network decides on every entry of Phi: down, as it is, or up. It sees the entry and the
  one across the diagonal, the mean probabilities that validation images of the one class get for
  the other, these against their moving averages, progress, and the metric.
- Entries stay near the identity's, and those off the diagonal change less, by a factor of the other
  classes' number. (Without bounds, negative entries reward any confident prediction, right or
  wrong, and the loss saturates.)
- The loss is multiplied by 4, so that at a probability of 1 its gradient is cross-entropy's.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt, Lt

from edl_jax.checked import Checked, Count, Positive
from edl_jax.losses.inputs import log_softmax
from edl_jax.losses.method import METHODS, LossMethod, Student

_FEATURES, _ACTIONS = 10, 3  # what the policy sees of an entry; down, as it is, up
_FOLLOWED = 0.2  # of a change, by a moving average, at each decision


@METHODS.register("ala")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ALA(Checked, LossMethod):
    """A matrix of class correlations, changed by a policy that is rewarded on validation images.

    References:
      Huang et al., Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, ICML 2019.
      https://arxiv.org/abs/1905.05895
    """

    looks_at: ClassVar[str] = "training images, and labels of validation images"

    metric: Literal["accuracy", "nll"] = "accuracy"
    """What the policy is to improve on validation images: accuracy, or the mean log-likelihood."""
    every: Count = 10
    """Number of steps between two changes of the loss."""
    steps: Count = 5
    """Number of further steps after which a change is rewarded."""
    children: Annotated[int, Ge(2)] = 4
    """Number of changes that are tried each time."""
    change: Positive = 0.1
    """By how much a diagonal entry of the matrix changes at a time."""
    limit: Annotated[float, Gt(0), Lt(1)] = 0.5
    """By how much a diagonal entry may differ from 1."""
    hidden: Count = 32
    """Width of the policy's hidden layer."""
    learning_rate: Positive = 0.01
    """Learning rate of the policy."""

    def init(self, key: jax.Array, num_classes: int) -> Any:
        """The identity, and a policy to which all changes are equally probable."""
        key, key_policy = jax.random.split(key)
        policy = initial_policy(key_policy, self.hidden)
        return {
            "deviation": jnp.zeros((num_classes, num_classes), jnp.float32),
            "policy": policy,
            "adam": optax.adam(self.learning_rate).init(policy),
            "confusion": jnp.full((num_classes, num_classes), 1 / num_classes, jnp.float32),
            "metric": jnp.zeros((), jnp.float32),
            "key": key,
        }

    def losses(self, state: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The losses under the matrix of the state."""
        return matrix_losses(matrix_of(state["deviation"]), logits, labels)

    def update(self, state: Any, student: Student) -> Any:
        """Every so many steps, change the matrix and learn from what its children come to."""
        decide = partial(self._decided, state, student)
        return jax.lax.cond(student.step % self.every == 0, decide, lambda: state)

    def _decided(self, state: Any, student: Student) -> Any:
        before, key = state["deviation"], state["key"]
        logits, labels = student.validation()
        metric = _METRICS[self.metric](logits, labels)
        confusion = mean_probabilities(logits, labels, state["confusion"])
        changes = confusion - state["confusion"], metric - state["metric"]
        features = features_of(before, confusion, student.progress, metric, *changes)

        def changed(change: jax.Array) -> jax.Array:
            return jnp.clip(before + self.change * change, -self.limit, self.limit)

        def reward(action: jax.Array) -> jax.Array:
            matrix = matrix_of(changed(action.astype(jnp.float32) - 1))
            ahead = student.lookahead(partial(matrix_losses, matrix), self.steps)
            return _METRICS[self.metric](*ahead) - metric

        key, key_actions = jax.random.split(key)
        log_policy = log_probabilities(state["policy"], features)
        shape = (self.children, *before.shape)
        actions = jax.random.categorical(key_actions, log_policy, shape=shape)
        rewards = jax.lax.map(reward, actions)  # in turn, so that memory does not grow
        gradient = policy_gradient(state["policy"], features, actions, rewards)
        descent = jax.tree.map(jnp.negative, gradient)
        with jax.numpy_dtype_promotion("standard"):  # which Adam needs
            updates, adam = optax.adam(self.learning_rate).update(descent, state["adam"])
        policy: Any = optax.apply_updates(state["policy"], updates)
        probabilities = jnp.exp(log_probabilities(policy, features))
        return {
            "deviation": changed(probabilities[..., 2] - probabilities[..., 0]),
            "policy": policy,
            "adam": adam,
            "confusion": state["confusion"] + _FOLLOWED * changes[0],
            "metric": state["metric"] + _FOLLOWED * changes[1],
            "key": key,
        }


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def _log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


_METRICS = {"accuracy": _accuracy, "nll": _log_likelihood}  # the more the better


def matrix_losses(matrix: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`-4 sigmoid(y' Phi log p)`, `[batch]`, for classes or soft labels `y`."""
    is_soft = labels.ndim == logits.ndim
    rows = labels @ matrix if is_soft else matrix[labels]
    return -4 * jax.nn.sigmoid(jnp.sum(rows * log_softmax(logits, None), axis=-1))


def matrix_of(deviation: jax.Array) -> jax.Array:
    """`Phi` of its deviation from the identity, which counts fully on the diagonal alone.

    Entries off the diagonal count by `1 / (num_classes - 1)`: all of a row as much as its diagonal.
    """
    num_classes = len(deviation)
    eye = jnp.eye(num_classes, dtype=deviation.dtype)
    return eye + jnp.where(eye > 0, deviation, deviation / (num_classes - 1))


def mean_probabilities(logits: jax.Array, labels: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Of the examples of each class the mean probabilities, `[num_classes, num_classes]`.

    A class without an example has its row of `otherwise`.
    """
    of_class = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    counts = of_class.sum(axis=0)[:, None]
    means = of_class.T @ jax.nn.softmax(logits, axis=-1) / jnp.maximum(counts, 1)
    return jnp.where(counts > 0, means, otherwise)


def features_of(
    deviation: jax.Array,
    confusion: jax.Array,
    progress: jax.Array,
    metric: jax.Array,
    confusion_change: jax.Array,
    metric_change: jax.Array,
) -> jax.Array:
    """What the policy sees of every entry, `[num_classes, num_classes, features]`."""
    of_pairs = [y for x in (deviation, confusion, confusion_change) for y in (x, x.T)]
    of_all = [jnp.full_like(deviation, x) for x in (progress, metric, metric_change)]
    return jnp.stack([*of_pairs, jnp.eye(len(deviation), dtype=deviation.dtype), *of_all], axis=-1)


def initial_policy(key: jax.Array, hidden: int) -> dict[str, jax.Array]:
    """A network with one hidden layer whose outputs are all 0."""
    draw = jax.random.normal(key, (_FEATURES, hidden), jnp.float32)
    return {
        "hidden": draw / jnp.sqrt(jnp.float32(_FEATURES)),
        "hidden_bias": jnp.zeros(hidden, jnp.float32),
        "output": jnp.zeros((hidden, _ACTIONS), jnp.float32),
        "output_bias": jnp.zeros(_ACTIONS, jnp.float32),
    }


def log_probabilities(policy: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Log-probabilities of the actions, `[..., 3]`, of features `[..., features]`."""
    hidden = jax.nn.relu(features @ policy["hidden"] + policy["hidden_bias"])
    return jax.nn.log_softmax(hidden @ policy["output"] + policy["output_bias"])


def policy_gradient(
    policy: dict[str, jax.Array], features: jax.Array, actions: jax.Array, rewards: jax.Array
) -> dict[str, jax.Array]:
    """An unbiased estimate of the gradient of the expected reward (REINFORCE).

    Args:
      policy: the parameters by which to differentiate.
      features: `[n, n, features]`.
      actions: of each child, drawn independently from the policy, `[children, n, n]`.
      rewards: `[children]`; the mean of the others' is the baseline of each.
    """
    children = len(rewards)
    advantages = (rewards - rewards.mean()) * children / (children - 1)

    def objective(policy: dict[str, jax.Array]) -> jax.Array:
        log_policy = jnp.broadcast_to(
            log_probabilities(policy, features), (*actions.shape, _ACTIONS)
        )
        chosen = jnp.take_along_axis(log_policy, actions[..., None], axis=-1)
        return jnp.mean(advantages * chosen.sum(axis=(1, 2, 3)))

    return jax.grad(objective)(policy)
