"""MeTAL: a loss for few-shot learning that adapts to each task and each step (Baik et al., 2021).

A classifier learns a task, a few images of each of a few classes, by a few gradient steps. MAML
learns the weights that they start from; MeTAL also learns the loss of each step.

The paper's, by the authors' code: the loss of a step is the cross-entropy of the labeled images,
plus the mean output of an MLP on (that cross-entropy, the mean of each weight array, logits,
one-hot label) of each of them, plus that of another MLP on (the mean of each weight array, logits,
negative entropy) of each unlabeled query image. Inputs are normalized over the batch. Adapters,
MLPs too, scale and shift the MLPs' parameters for the task. Each step has its own MLPs and
adapters. Four convolutions with batch norm, by the statistics of all images of the task together;
its scale and shift stay as they are within a task. Leaky ReLUs, 5 steps at 0.01, second-order
gradients; Adam at 1e-3, 2 tasks in a step, 15 queries of a class and 600 test tasks, which are
`FewShotConfig`'s defaults, for 50,000 steps.

Ours: the outer loss is that of the query images, as in the paper's text (the code adds the labeled
ones); 32 channels (48 there); adapters begin with Glorot's weights; no multi-step loss, and no
choice of the best epoch. MAML differs here from MeTAL by the loss of its steps alone.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.checked import Checked, Count, Positive
from edl_jax.errors import ConfigError
from edl_jax.losses.method import METHODS
from edl_jax.models.convolution import convolve_in_loops

Layer = tuple[jax.Array, jax.Array]  # kernel, bias
_LAYERS = 4


@METHODS.register("metal")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeTAL(Checked):
    """A loss for few-shot learning that adapts to each task; `meta_train` learns it.

    References:
      Baik et al., Meta-Learning with Task-Adaptive Loss Function for Few-Shot Learning, ICCV 2021.
      Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017.
    """

    looks_at: ClassVar[str] = "images and labels of the training classes, as few-shot tasks"

    inner_loss: Literal["learned", "cross_entropy"] = "learned"
    """Loss of the steps by which a task is learned: learned (MeTAL) or cross_entropy (MAML)."""
    inner_steps: Count = 5
    """Number of these steps."""
    inner_rate: Positive = 0.01
    """Their learning rate."""
    width: Count = 32
    """Channels of the classifier's four convolutions."""

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Refuse to be a loss of batches."""
        raise ConfigError(
            "the method metal learns from few-shot tasks, so train cannot use it. Run "
            "edl_jax.training.few_shot.meta_train(MeTAL(), data) instead."
        )

    def init(self, key: jax.Array, image_shape: tuple[int, ...], ways: int) -> "Learned":
        """What is learned over many tasks, as it begins; float32."""
        key_weights, key_losses = jax.random.split(key)
        weights = _classifier(key_weights, image_shape, ways, self.width)
        one, zero = jnp.ones(self.width, jnp.float32), jnp.zeros(self.width, jnp.float32)
        norms = [(one, zero)] * _LAYERS
        if self.inner_loss == "cross_entropy":
            return Learned(weights, norms, ())
        means = len(jax.tree.leaves(weights))
        sizes = (means + 1, means + 1 + 2 * ways), (means + ways + 1, means + ways + 1)
        keys = jax.random.split(key_losses, (2, self.inner_steps))
        losses = [
            jax.vmap(partial(StepLoss.init, task_size=of_task, row_size=of_row))(of_part)
            for of_part, (of_task, of_row) in zip(keys, sizes, strict=True)
        ]
        return Learned(weights, norms, tuple(losses))

    def query_loss(
        self, learned: "Learned", support: jax.Array, query: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy and accuracy on the queries of a task, once it is learned.

        Args:
          learned: as of `init`.
          support: images `[ways, shots, height, width, channels]`; the first axis is the class.
          query: images `[ways, queries, height, width, channels]`.
        """

        def step(weights: list[Layer], losses: Any) -> tuple[list[Layer], None]:
            def loss(weights: list[Layer]) -> jax.Array:
                logits = _logits(weights, learned.norms, support, query)
                if self.inner_loss == "cross_entropy":
                    return _cross_entropy(logits[0])
                return learned_loss(losses, weights, *logits)

            gradient = jax.grad(loss)(weights)
            return jax.tree.map(lambda w, g: w - self.inner_rate * g, weights, gradient), None

        weights, _ = jax.lax.scan(step, learned.weights, learned.losses, self.inner_steps)
        _, logits = _logits(weights, learned.norms, support, query)
        right = jnp.argmax(logits, axis=-1) == jnp.arange(len(logits))[:, None]
        return _cross_entropy(logits), right.mean(dtype=logits.dtype)


class Learned(NamedTuple):
    """What is learned over many tasks."""

    weights: list[Layer]  # of the classifier, from which each task starts
    norms: list[Layer]  # scale and shift of its batch norms, the same for all steps of a task
    losses: tuple["StepLoss", ...]  # of support and query, with an axis of steps; of MAML none


class StepLoss(NamedTuple):
    """An MLP whose mean output is a loss, and the adapter of its parameters to a task."""

    mlp: list[Layer]
    adapter: list[Layer]
    scale: jax.Array  # of the adapter's factors, `[4]`; 0 at first, so that it changes nothing
    shift: jax.Array  # of what it adds, likewise

    @classmethod
    def init(cls, key: jax.Array, task_size: int, row_size: int) -> "StepLoss":
        """Glorot's weights; hidden layers are as wide as the inputs."""
        keys = jax.random.split(key, 4)
        mlp = [_layer(keys[0], (row_size, row_size)), _layer(keys[1], (row_size, 1))]
        adapter = [_layer(keys[2], (task_size, task_size)), _layer(keys[3], (task_size, 8))]
        return cls(mlp, adapter, jnp.zeros(4, jnp.float32), jnp.zeros(4, jnp.float32))

    def __call__(self, task: jax.Array, rows: jax.Array) -> jax.Array:
        """The loss of normalized inputs `[n, row_size]` for the state `[task_size]` of a task."""
        factors, shifts = jnp.split(_mlp(self.adapter, task), 2)
        leaves, tree = jax.tree.flatten(self.mlp)
        by = zip(1 + self.scale * factors, leaves, self.shift * shifts, strict=True)
        adapted = jax.tree.unflatten(tree, [factor * w + shift for factor, w, shift in by])
        return _mlp(adapted, rows).mean()


def learned_loss(
    losses: Any, weights: list[Layer], support: jax.Array, query: jax.Array
) -> jax.Array:
    """The loss of a step, for logits `[ways, n, ways]`; the first axis is the class.

    The queries' labels are not used: the order of the rows does not matter.
    """
    of_support, of_query = losses
    ways = len(support)
    means = jnp.stack([w.mean() for w in jax.tree.leaves(weights)])
    cross_entropy = _cross_entropy(support)
    task = jnp.append(means, cross_entropy)
    labels = jnp.broadcast_to(jnp.eye(ways, dtype=support.dtype)[:, None], support.shape)
    rows = _normalized(_beside(task, support, labels))
    loss = cross_entropy + of_support(_normalized(task), rows)
    log_p = jax.nn.log_softmax(query)
    negative_entropy = jnp.sum(jnp.exp(log_p) * log_p, axis=-1, keepdims=True)
    rows = _normalized(_beside(means, query, negative_entropy))
    return loss + of_query(rows.mean(axis=0), rows)


def _beside(task: jax.Array, *columns: jax.Array) -> jax.Array:
    """Rows of the task's numbers, the same in each, and of columns `[ways, n, size]`."""
    rows = [x.reshape(-1, x.shape[-1]) for x in columns]
    same = jnp.broadcast_to(task, (len(rows[0]), len(task)))
    return jnp.concatenate([same, *rows], axis=-1)


def _normalized(x: jax.Array) -> jax.Array:
    return (x - x.mean()) / (x.std(ddof=1) + 1e-12)


def _cross_entropy(logits: jax.Array) -> jax.Array:
    """The mean over logits `[ways, n, ways]`, whose first axis is the class."""
    of_label = jnp.eye(len(logits), dtype=logits.dtype)[:, None] * jax.nn.log_softmax(logits)
    return -of_label.sum(axis=-1).mean()


def _mlp(layers: list[Layer], x: jax.Array) -> jax.Array:
    (kernel, bias), (kernel_out, bias_out) = layers
    return jax.nn.relu(x @ kernel + bias) @ kernel_out + bias_out


def _layer(key: jax.Array, shape: tuple[int, ...]) -> Layer:
    """Glorot's uniform weights, and biases of 0."""
    kernel = jax.nn.initializers.glorot_uniform()(key, shape, jnp.float32)
    return kernel, jnp.zeros(shape[-1], jnp.float32)


def _classifier(key: jax.Array, image_shape: tuple[int, ...], ways: int, width: int) -> list[Layer]:
    """Four convolutions and a linear layer."""
    (height, wide, channels), keys = image_shape, jax.random.split(key, _LAYERS + 1)
    shapes = [(3, 3, channels, width)] + [(3, 3, width, width)] * (_LAYERS - 1)
    for _ in shapes:
        height, wide = _halved(height, wide)
    shapes = [*shapes, (height * wide * width, ways)]
    return [_layer(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _logits(
    weights: list[Layer], norms: list[Layer], support: jax.Array, query: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits `[ways, n, ways]` of both; batch norm sees all images together."""
    parts = [x.reshape(-1, *x.shape[2:]) for x in (support, query)]
    logits = _forward(weights, norms, jnp.concatenate(parts))
    of_support, of_query = jnp.split(logits, [len(parts[0])])
    ways = len(support)
    return of_support.reshape(ways, -1, ways), of_query.reshape(ways, -1, ways)


def _forward(weights: list[Layer], norms: list[Layer], images: jax.Array) -> jax.Array:
    """Logits `[n, ways]` of images `[n, height, width, channels]`."""
    *convolutions, (kernel_out, bias_out) = weights
    x = images.astype(kernel_out.dtype)
    for (kernel, bias), (scale, shift) in zip(convolutions, norms, strict=True):
        x = convolve_in_loops(x, kernel, (1, 1), None) + bias
        deviation = x - x.mean(axis=(0, 1, 2))
        variance = jnp.square(deviation).mean(axis=(0, 1, 2))
        x = jax.nn.leaky_relu(scale * deviation * jax.lax.rsqrt(variance + 1e-5) + shift)
        height, wide = _halved(*x.shape[1:3])
        if (height, wide) != x.shape[1:3]:
            # Not `x.max`, whose gradient is NaN where XLA rounds `x` differently the second time.
            x = jnp.maximum(x[:, : 2 * height : 2], x[:, 1 : 2 * height : 2])
            x = jnp.maximum(x[:, :, : 2 * wide : 2], x[:, :, 1 : 2 * wide : 2])
    return x.reshape(len(x), -1) @ kernel_out + bias_out


def _halved(height: int, width: int) -> tuple[int, int]:
    """The size after pooling, which small images are spared."""
    return (height // 2, width // 2) if min(height, width) > 1 else (height, width)
