"""Synthetic classification problems: nothing real, and nothing that two draws have in common."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.objective.task_config import TaskConfig

_CLUSTERS = 3  # of each class of a mixture
_TEACHER_WIDTH = 32


class Problem(NamedTuple):
    """A problem; several have an axis of problems in front.

    Attributes:
      inputs: training examples, `[train_examples, num_features]` float32, each feature of zero mean
        and unit variance.
      labels: their labels, some of them wrong, `[train_examples]` int32.
      test_inputs: `[test_examples, num_features]` float32.
      test_labels: `[test_examples]` int32, none of them wrong.
    """

    inputs: jax.Array
    labels: jax.Array
    test_inputs: jax.Array
    test_labels: jax.Array


def draw_problem(key: jax.Array, config: TaskConfig) -> Problem:
    """Draw a problem: half of them are mixtures of Gaussians, half have a network for a teacher.

    In a mixture every class has a few clusters of its own shape, which overlap with others'. A
    teacher is a random network, and labels are drawn from its softmax output. In both a part of the
    test error cannot be avoided, and more is beyond a small classifier.
    """
    keys = jax.random.split(key, 4)
    of_mixture = _mixture(keys[0], config)
    of_teacher = _teacher(keys[1], config)
    is_mixture = jax.random.bernoulli(keys[2], jnp.float32(0.5))
    inputs, labels = jax.tree.map(lambda a, b: jnp.where(is_mixture, a, b), of_mixture, of_teacher)
    inputs = _normalised(inputs)
    train, test = slice(config.train_examples), slice(config.train_examples, None)
    return Problem(
        inputs[train], _spoiled(keys[3], labels[train], config), inputs[test], labels[test]
    )


def _mixture(key: jax.Array, config: TaskConfig) -> tuple[jax.Array, jax.Array]:
    num, size = config.train_examples + config.test_examples, config.num_features
    num_clusters = config.num_classes * _CLUSTERS
    keys = jax.random.split(key, 4)
    centres = _normal(keys[0], (num_clusters, size))
    shapes = _normal(keys[1], (num_clusters, size, size)) / size**0.5
    clusters = jax.random.randint(keys[2], (num,), 0, num_clusters, jnp.int32)
    noise = _normal(keys[3], (num, size))
    spread = jnp.einsum("nij,nj->ni", shapes[clusters], noise)
    return centres[clusters] + spread, clusters % config.num_classes


def _teacher(key: jax.Array, config: TaskConfig) -> tuple[jax.Array, jax.Array]:
    num = config.train_examples + config.test_examples
    keys = jax.random.split(key, 6)
    inputs = _normal(keys[0], (num, config.num_features))
    hidden = inputs
    for layer in range(2):
        fan_in = hidden.shape[-1]
        kernel = _normal(keys[1 + layer], (fan_in, _TEACHER_WIDTH))
        hidden = jax.nn.relu(hidden @ kernel * (2 / fan_in) ** 0.5)
    logits = hidden @ _normal(keys[3], (_TEACHER_WIDTH, config.num_classes))
    logits = _normalised(logits)  # no class dominates
    sharpness = jax.random.uniform(keys[4], (), jnp.float32, 2.0, 8.0)
    return inputs, jax.random.categorical(keys[5], sharpness * logits).astype(jnp.int32)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _normalised(columns: jax.Array) -> jax.Array:
    """Columns of zero mean and unit variance."""
    mean, std = (of(columns, axis=0, keepdims=True) for of in (jnp.mean, jnp.std))
    return (columns - mean) / std


def _spoiled(key: jax.Array, labels: jax.Array, config: TaskConfig) -> jax.Array:
    """The labels, a share of which is replaced by a random other class."""
    key_rate, key_which, key_shift = jax.random.split(key, 3)
    rate = jax.random.uniform(key_rate, (), jnp.float32, maxval=config.max_label_noise)
    is_wrong = jax.random.bernoulli(key_which, rate, labels.shape)
    shift = jax.random.randint(key_shift, labels.shape, 1, config.num_classes, jnp.int32)
    return jnp.where(is_wrong, (labels + shift) % config.num_classes, labels)
