"""L2T-DLN: a loss network that an LSTM changes while the student trains (Hai et al., NeurIPS 2023).

The paper's and its authors' code's: the loss network, an MLP without biases on
`(sigmoid(x_y), sigmoid(x_j), 1, 0)` of each class pair, with the row `j = y` zeroed, averaged over
the pairs; the gradient of validation cross-entropy by its weights through 15 steps of the student;
an LSTM that makes of each weight's gradient, preprocessed as by Andrychowicz et al. (2016), and of
what it remembers the weight's change; and the LSTM's training on the validation loss that the same
steps end with under the changed loss. The student then takes these steps.

Ours: the first loss network. The authors' is random, and so need not train a classifier at all;
ours is fitted, on random logits before training begins, to twice the logistic loss of each pair,
`2 log(1 + exp(x_j - x_y))`, whose mean has the gradient of cross-entropy where all logits are
equal. The LSTM corrects a step along the gradient, where the authors' alone has to learn to
descend: theirs acts 2,500 times, and in an ordinary training of ours some dozens of times. For the
same reason the larger step and learning rate (theirs are 0.001). The loss of a soft label is the
mean of its classes' losses.
"""

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from annotated_types import MinLen

from edl_jax.checked import Checked, Count, NotNegative
from edl_jax.losses.method import METHODS, LossMethod, Student

Arrays = list[jax.Array]
_SCALE = 10.0  # of the preprocessing: gradients below exp(-10) are seen as they are
_FIT_STEPS, _FIT_BATCH, _FIT_RATE, _FIT_STD = 1000, 256, 0.01, 2.0


@METHODS.register("l2t_dln")
@dataclasses.dataclass(frozen=True, kw_only=True)
class L2TDLN(LossMethod, Checked):
    """A loss network whose weights an LSTM changes while the student trains.

    References:
      Hai et al., L2T-DLN: Learning to Teach with Dynamic Loss Network, NeurIPS 2023.
      https://arxiv.org/abs/2310.19313
    """

    looks_at: ClassVar[str] = "training images, and validation images with their labels"

    steps: Count = 15
    """How many steps of the student the teacher looks ahead."""
    every: Count = 15
    """How often the teacher looks ahead, learns and changes the loss, in steps."""
    learning_rate: NotNegative = 0.003
    """Learning rate of the LSTM, by Adam."""
    step_size: NotNegative = 0.01
    """Size of the changes of the loss's weights; 0 keeps the first loss."""
    hidden: Annotated[tuple[Count, ...], MinLen(1)] = (40, 40, 40, 40)
    """Widths of the loss network's hidden layers."""
    lstm: tuple[Count, ...] = (64, 64, 64)
    """Widths of the LSTM's layers, before the last, of width 1."""

    def init(self, key: jax.Array, num_classes: int) -> dict[str, Any]:
        """A fitted loss network, a random LSTM that remembers nothing, and its optimizer."""
        key_loss, key_teacher = jax.random.split(key)
        loss = fitted_network(key_loss, self.hidden)
        teacher = new_lstm(key_teacher, (2, *self.lstm, 1))
        size = sum(x.size for x in loss)
        return {
            "loss": loss,
            "teacher": teacher,
            "optimizer": optax.adam(self.learning_rate).init(teacher),
            "memory": [jnp.zeros((2, size, width), jnp.float32) for width in (*self.lstm, 1)],
        }

    def losses(self, state: dict[str, Any], logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss network's losses."""
        return network_losses(state["loss"], logits, labels)

    def update(self, state: dict[str, Any], student: Student) -> dict[str, Any]:
        """Every so many steps, look ahead twice and change the loss and the teacher."""

        def ahead(loss: Arrays) -> jax.Array:
            logits, labels = student.lookahead(partial(network_losses, loss), self.steps)
            cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
            return cross_entropy(logits, labels).mean()

        def teach(state: dict[str, Any]) -> dict[str, Any]:
            gradient = jax.grad(ahead)(state["loss"])

            def outcome(teacher: Any) -> tuple[jax.Array, tuple[Arrays, Arrays]]:
                change, memory = proposed(teacher, gradient, state["memory"])
                loss = [x - self.step_size * d for x, d in zip(state["loss"], change, strict=True)]
                return ahead(loss), (loss, memory)

            of_teacher, (loss, memory) = jax.grad(outcome, has_aux=True)(state["teacher"])
            adam = optax.adam(self.learning_rate)
            with jax.numpy_dtype_promotion("standard"):  # which Adam needs
                updates, optimizer = adam.update(of_teacher, state["optimizer"])
            teacher = optax.apply_updates(state["teacher"], updates)
            return {"loss": loss, "teacher": teacher, "optimizer": optimizer, "memory": memory}

        return jax.lax.cond(student.step % self.every == 0, teach, lambda state: state, state)


def network_losses(weights: Arrays, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The network's losses `[batch]`; labels are classes or soft."""
    num_classes = logits.shape[-1]
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    labelled = classes if labels.ndim == logits.ndim else labels[:, None]  # `[n]` or `[batch, 1]`
    labelled = jnp.broadcast_to(labelled, (len(logits), labelled.shape[-1]))
    s = jax.nn.sigmoid(logits)
    s_y = jnp.take_along_axis(s, labelled, axis=-1)[..., None]  # `[batch, n, 1]`
    s_y, s_j = jnp.broadcast_arrays(s_y, s[:, None])  # `[batch, n, num_classes]`
    pairs = jnp.stack([s_y, s_j, jnp.ones_like(s_y), jnp.zeros_like(s_y)], axis=-1)
    is_other = (classes != labelled[..., None])[..., None]
    values = network(weights, jnp.where(is_other, pairs, 0)).mean(axis=-1)  # `[batch, n]`
    return jnp.sum(labels * values, axis=-1) if labels.ndim == logits.ndim else values[:, 0]


def network(weights: Arrays, x: jax.Array) -> jax.Array:
    """The MLP's values `[...]` of inputs `[..., 4]`."""
    *hidden, last = weights
    for weight in hidden:
        x = jax.nn.leaky_relu(_product(x, weight))
    return _product(x, last)[..., 0]


def fitted_network(key: jax.Array, hidden: tuple[int, ...]) -> Arrays:
    """A network near twice the logistic loss of a pair of logits, `2 log(1 + exp(x_j - x_y))`."""
    key_init, key_fit = jax.random.split(key)
    sizes = (4, *hidden, 1)
    make = jax.nn.initializers.he_normal()
    keys = jax.random.split(key_init, len(sizes) - 1)
    weights = [make(k, x, jnp.float32) for k, x in zip(keys, pairwise(sizes), strict=True)]
    schedule = optax.schedules.cosine_decay_schedule(_FIT_RATE, _FIT_STEPS)
    adam = optax.adam(lambda step: schedule(jnp.asarray(step, jnp.float32)))

    def error(weights: Arrays, key: jax.Array) -> jax.Array:
        logits = _FIT_STD * jax.random.normal(key, (_FIT_BATCH, 2), jnp.float32)
        s = jax.nn.sigmoid(logits)
        pairs = jnp.concatenate([s, jnp.ones_like(s[:, :1]), jnp.zeros_like(s[:, :1])], axis=-1)
        wanted = 2 * jax.nn.softplus(logits[:, 1] - logits[:, 0])
        return jnp.mean((network(weights, pairs) - wanted) ** 2)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        weights, optimizer = carry
        gradient = jax.grad(error)(weights, key)
        with jax.numpy_dtype_promotion("standard"):  # which Adam needs
            updates, optimizer = adam.update(gradient, optimizer)
        return (optax.apply_updates(weights, updates), optimizer), None

    keys = jax.random.split(key_fit, _FIT_STEPS)
    (weights, _), _ = jax.lax.scan(step, (weights, adam.init(weights)), keys)
    return weights


def new_lstm(key: jax.Array, sizes: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    """Random layers of an LSTM, uniform in `1 / sqrt(width)` as PyTorch's."""

    def layer(key: jax.Array, inputs: int, width: int) -> dict[str, jax.Array]:
        shapes = {"input": (inputs, 4 * width), "memory": (width, 4 * width), "bias": (4 * width,)}
        keys, bound = jax.random.split(key, len(shapes)), width**-0.5
        return {
            name: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    keys = jax.random.split(key, len(sizes) - 1)
    return [layer(k, *x) for k, x in zip(keys, pairwise(sizes), strict=True)]


def proposed(teacher: Any, gradient: Arrays, memory: Arrays) -> tuple[Arrays, Arrays]:
    """The change of each weight, in (-2, 2), and what the LSTM then remembers.

    The gradient in units of its root mean square, cut to [-1, 1], and the LSTM's output.
    """
    flat = jnp.concatenate([g.ravel() for g in gradient])
    unit = jnp.sqrt(jnp.mean(flat**2)) + jnp.finfo(flat.dtype).tiny
    x, new_memory = preprocessed(flat), []
    for layer, (h, c) in zip(teacher, memory, strict=True):
        gates = _product(x, layer["input"]) + _product(h, layer["memory"]) + layer["bias"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        x = jax.nn.sigmoid(o) * jnp.tanh(c)
        new_memory.append(jnp.stack([x, c]))
    ends = [sum(g.size for g in gradient[: i + 1]) for i in range(len(gradient) - 1)]
    parts = jnp.split(jnp.clip(flat / unit, -1, 1) + x[:, 0], ends)
    return [part.reshape(g.shape) for part, g in zip(parts, gradient, strict=True)], new_memory


def preprocessed(gradient: jax.Array) -> jax.Array:
    """Size and sign `[n, 2]` of gradients `[n]` that may be of very different sizes."""
    size = jnp.abs(gradient)
    is_large = size >= jnp.exp(-_SCALE)
    logarithm = jnp.log(jnp.where(is_large, size, 1)) / _SCALE
    large = jnp.stack([logarithm, jnp.sign(gradient)], axis=-1)
    small = jnp.stack([-jnp.ones_like(size), jnp.exp(_SCALE) * gradient], axis=-1)
    return jnp.where(is_large[:, None], large, small)


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.matmul(x, weight, precision="highest")
