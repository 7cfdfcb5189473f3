"""Synthetic classification problems, and how well a small classifier learns them with a loss.

Nothing in a problem is real, and two draws have nothing in common.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Le, MinLen

from edl_jax.checked import Checked, Count, Positive
from edl_jax.objective.measure import LogitLoss, gradients
from edl_jax.pairs import Mixture, Pairs, sample_pairs

# Examples are normalised by one another's statistics: one alone would be all zeros.
_Several = Annotated[int, Ge(2)]
_TEACHER_WIDTH = 32


@dataclasses.dataclass(frozen=True)
class TaskConfig(Checked):
    """Which problems to draw, and how a classifier learns them. All defaults are ours."""

    num_tasks: Count = 8
    """Number of new problems per generation; a classifier learns each of them with each loss."""
    num_classes: _Several = 10
    """Number of classes in a problem."""
    num_features: _Several = 16
    """Number of features of an example."""
    train_examples: Count = 1024
    """Number of training examples in a problem."""
    test_examples: _Several = 1024
    """Number of held-out examples in a problem, used to measure the error."""
    max_label_noise: Annotated[float, Ge(0), Le(1)] = 0.2
    """Maximum share of wrong training labels; each problem draws its share uniformly from 0 to
    this."""
    hidden: _Several = 32
    """Width of the classifier's hidden layer."""
    steps: Count = 200
    """Number of training steps."""
    batch_size: _Several = 64
    """Number of examples per step."""
    learning_rates: Annotated[tuple[Positive, ...], MinLen(1)] = (0.1, 0.3, 1.0)
    """Peak learning rates to try; each loss is scored at its best one over all problems."""


class Problem(NamedTuple):
    """Examples `[n, num_features]` float32, normalised, and int32 labels `[n]`, some wrong."""

    inputs: jax.Array
    labels: jax.Array
    test_inputs: jax.Array
    test_labels: jax.Array  # none is wrong


class Tasks(NamedTuple):
    """Problems, and all that is random in learning them: the same for every loss."""

    problems: Problem  # with an axis of tasks in front, as have the initial weights
    weights: Any
    batches: jax.Array  # rows of the training examples, `[num_tasks, steps, batch_size]`
    pairs: Pairs  # to calibrate losses on


def draw_tasks(key: jax.Array, config: TaskConfig, mixture: Mixture) -> Tasks:
    """Fresh tasks; the pairs are of the mixture."""
    key_problems, key_weights, key_batches, key_pairs = jax.random.split(key, 4)

    def of_tasks(draw: Callable[[jax.Array, TaskConfig], Any], key: jax.Array) -> Any:
        return jax.vmap(lambda key: draw(key, config))(jax.random.split(key, config.num_tasks))

    shape = (config.num_tasks, config.steps, config.batch_size)
    return Tasks(
        of_tasks(draw_problem, key_problems),
        of_tasks(_initial_weights, key_weights),
        jax.random.randint(key_batches, shape, 0, config.train_examples, jnp.int32),
        sample_pairs(key_pairs, 512, config.num_classes, mixture=mixture),
    )


def draw_problem(key: jax.Array, config: TaskConfig) -> Problem:
    """Draw a problem: half of them are mixtures of Gaussians, half have a network for a teacher.

    In both a part of the test error cannot be avoided, and more is beyond a small classifier.
    """
    key_mixture, key_teacher, key_coin, key_noise = jax.random.split(key, 4)
    is_mixture = jax.random.bernoulli(key_coin, jnp.float32(0.5))
    families = _mixture(key_mixture, config), _teacher(key_teacher, config)
    inputs, labels = jax.tree.map(lambda a, b: jnp.where(is_mixture, a, b), *families)
    inputs = _normalised(inputs)
    train, test = slice(config.train_examples), slice(config.train_examples, None)
    noisy = _with_wrong_labels(key_noise, labels[train], config)
    return Problem(inputs[train], noisy, inputs[test], labels[test])


def _mixture(key: jax.Array, config: TaskConfig) -> tuple[jax.Array, jax.Array]:
    """Every class has a few clusters of its own shape, which overlap with others'."""
    num, size = config.train_examples + config.test_examples, config.num_features
    num_clusters = 3 * config.num_classes
    keys = jax.random.split(key, 4)
    centres = _normal(keys[0], num_clusters, size)
    shapes = _normal(keys[1], num_clusters, size, size) / size**0.5
    clusters = jax.random.randint(keys[2], (num,), 0, num_clusters, jnp.int32)
    spread = jnp.einsum("nij,nj->ni", shapes[clusters], _normal(keys[3], num, size))
    return centres[clusters] + spread, clusters % config.num_classes


def _teacher(key: jax.Array, config: TaskConfig) -> tuple[jax.Array, jax.Array]:
    """Labels are drawn from the softmax output of a random network."""
    keys = jax.random.split(key, 6)
    size = config.num_features
    hidden = inputs = _normal(keys[0], config.train_examples + config.test_examples, size)
    for key, fan_in in ((keys[1], size), (keys[2], _TEACHER_WIDTH)):
        kernel = _normal(key, fan_in, _TEACHER_WIDTH)
        hidden = jax.nn.relu(hidden @ kernel * (2 / fan_in) ** 0.5)
    logits = hidden @ _normal(keys[3], _TEACHER_WIDTH, config.num_classes)
    sharpness = jax.random.uniform(keys[4], (), jnp.float32, 2.0, 8.0)
    logits = sharpness * _normalised(logits)  # no class dominates
    return inputs, jax.random.categorical(keys[5], logits).astype(jnp.int32)


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _normalised(columns: jax.Array) -> jax.Array:
    """Columns of zero mean and unit variance."""
    mean, std = (of(columns, axis=0, keepdims=True) for of in (jnp.mean, jnp.std))
    return (columns - mean) / std


def _with_wrong_labels(key: jax.Array, labels: jax.Array, config: TaskConfig) -> jax.Array:
    """The labels, a share of which is replaced by a random other class."""
    key_rate, key_which, key_shift = jax.random.split(key, 3)
    rate = jax.random.uniform(key_rate, (), jnp.float32, maxval=config.max_label_noise)
    is_wrong = jax.random.bernoulli(key_which, rate, labels.shape)
    shift = jax.random.randint(key_shift, labels.shape, 1, config.num_classes, jnp.int32)
    return jnp.where(is_wrong, (labels + shift) % config.num_classes, labels)


def task_errors(loss: LogitLoss, tasks: Tasks, config: TaskConfig) -> jax.Array:
    """Learn every task, drawn by `config`, with a loss at every learning rate.

    The loss, from log-probabilities `[..., num_classes]` and labels `[...]` to losses `[...]`, is
    first calibrated on the pairs (docs/method.md, section 6): its scale is a learning rate.

    Returns:
      The share of held-out examples that is classified wrongly, `[num_rates, num_tasks]`; a
      classifier that diverges guesses.
    """

    def on_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return loss(jax.nn.log_softmax(logits), labels)

    _, *both = gradients(on_logits, tasks.pairs)
    own, reference = (jnp.sum(jnp.linalg.norm(x, axis=-1)) for x in both)
    scale = reference / jnp.maximum(own, jnp.finfo(own.dtype).tiny)

    def error(rate: jax.Array, problem: Problem, weights: Any, batches: jax.Array) -> jax.Array:
        weights = _learned(lambda x, y: scale * on_logits(x, y), rate, problem, weights, batches)
        logits = _logits(weights, problem.test_inputs)
        return jnp.mean(jnp.argmax(logits, axis=-1) != problem.test_labels)

    of_tasks = jax.vmap(error, (None, 0, 0, 0))
    of_rates = jax.vmap(of_tasks, (0, None, None, None))
    rates = jnp.asarray(config.learning_rates, jnp.float32)
    return of_rates(rates, tasks.problems, tasks.weights, tasks.batches)


def _learned(
    loss: LogitLoss, rate: jax.Array, problem: Problem, weights: Any, batches: jax.Array
) -> Any:
    """Weights after SGD with Nesterov's momentum, as a ResNet is usually trained."""
    total = len(batches)
    warm_up = max(1, round(0.1 * total))
    schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, total + 1)

    def rate_at(count: jax.typing.ArrayLike) -> jax.Array:
        # As a float: a strict promotion of dtypes refuses what optax does with whole numbers.
        return rate * schedule(jnp.asarray(count, jnp.float32) + 1)

    sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate_at, 0.9, nesterov=True))

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        weights, state = carry
        inputs, labels = problem.inputs[rows], problem.labels[rows]
        found = jax.grad(lambda w: jnp.mean(loss(_logits(w, inputs), labels)))(weights)
        updates, state = sgd.update(found, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    return jax.lax.scan(step, (weights, sgd.init(weights)), batches)[0][0]


def _initial_weights(key: jax.Array, config: TaskConfig) -> Any:
    key_hidden, key_head = jax.random.split(key)
    num_features, width, num_classes = config.num_features, config.hidden, config.num_classes
    return {
        "hidden": _normal(key_hidden, num_features, width) * (2 / num_features) ** 0.5,
        "scale": jnp.ones(width, jnp.float32),
        "shift": jnp.zeros(width, jnp.float32),
        "head": _normal(key_head, width, num_classes) / width**0.5,
        "bias": jnp.zeros(num_classes, jnp.float32),
    }


def _logits(weights: Any, inputs: jax.Array) -> jax.Array:
    """A layer with batch normalisation, by the statistics of these very inputs, and a head."""
    hidden = inputs @ weights["hidden"]
    hidden = jax.nn.standardize(hidden, axis=0) * weights["scale"][None] + weights["shift"][None]
    return jax.nn.relu(hidden) @ weights["head"] + weights["bias"][None]
