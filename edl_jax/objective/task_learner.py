"""How well a small classifier learns synthetic problems with a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edl_jax.objective import gradient_norms
from edl_jax.objective.task_config import TaskConfig
from edl_jax.objective.task_problems import Problem, draw_problem
from edl_jax.pairs import Mixture, Pairs, sample_pairs

PairLoss = Callable[[jax.Array, jax.Array], jax.Array]
_CALIBRATION_PAIRS = 512
_MOMENTUM, _WEIGHT_DECAY, _WARM_UP = 0.9, 5e-4, 0.1  # of the training; warm-up is a share of it


class Tasks(NamedTuple):
    """Problems, and all that is random in learning them: the same for every loss.

    Attributes:
      problems: an axis of tasks in front.
      weights: initial weights of the classifiers, likewise.
      batches: rows of the training examples, `[num_tasks, steps, batch_size]` int32.
      pairs: synthetic pairs that losses are calibrated on.
    """

    problems: Problem
    weights: Any
    batches: jax.Array
    pairs: Pairs


def draw_tasks(key: jax.Array, config: TaskConfig, mixture: Mixture) -> Tasks:
    """Fresh tasks; the pairs are of the mixture."""
    key_problems, key_weights, key_batches, key_pairs = jax.random.split(key, 4)
    shape = (config.num_tasks, config.steps, config.batch_size)
    return Tasks(
        jax.vmap(lambda key: draw_problem(key, config))(
            jax.random.split(key_problems, config.num_tasks)
        ),
        jax.vmap(lambda key: _initial_weights(key, config))(
            jax.random.split(key_weights, config.num_tasks)
        ),
        jax.random.randint(key_batches, shape, 0, config.train_examples, jnp.int32),
        sample_pairs(key_pairs, _CALIBRATION_PAIRS, config.num_classes, mixture=mixture),
    )


def task_errors(loss: PairLoss, tasks: Tasks, config: TaskConfig) -> jax.Array:
    """Learn every task with a loss at every learning rate.

    The loss is first scaled so that its mean logit gradient on the pairs is as long as
    cross-entropy's (docs/method.md, section 6): scale is a learning rate.

    Args:
      loss: from log-probabilities `[..., num_classes]` and labels `[...]` to losses `[...]`.
      tasks: from `draw_tasks`.
      config: what they were drawn by.

    Returns:
      The share of held-out examples that is classified wrongly, `[num_rates, num_tasks]`. A
      classifier that diverges is one that guesses.
    """

    def on_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return loss(jax.nn.log_softmax(logits), labels)

    own, reference = (jnp.sum(norms) for norms in gradient_norms(on_logits, tasks.pairs))
    scale = reference / jnp.maximum(own, jnp.finfo(own.dtype).tiny)

    def scaled(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return scale * on_logits(logits, labels)

    def error(rate: jax.Array, problem: Problem, weights: Any, batches: jax.Array) -> jax.Array:
        weights = _learned(scaled, rate, problem, weights, batches)
        logits = _logits(weights, problem.test_inputs)
        return jnp.mean(jnp.argmax(logits, axis=-1) != problem.test_labels)

    of_tasks = jax.vmap(error, (None, 0, 0, 0))
    of_rates = jax.vmap(of_tasks, (0, None, None, None))
    rates = jnp.asarray(config.learning_rates, jnp.float32)
    return of_rates(rates, tasks.problems, tasks.weights, tasks.batches)


def _learned(
    loss: PairLoss, rate: jax.Array, problem: Problem, weights: Any, batches: jax.Array
) -> Any:
    """Weights after SGD with Nesterov's momentum, as a ResNet is usually trained."""
    total = batches.shape[0]
    warm_up = max(1, round(_WARM_UP * total))
    schedule = optax.schedules.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, total + 1)
    optimizer = optax.chain(
        optax.add_decayed_weights(_WEIGHT_DECAY),
        optax.trace(_MOMENTUM, nesterov=True),
        optax.scale_by_schedule(lambda count: -rate * schedule(count + 1)),
    )

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        weights, state = carry
        inputs, labels = problem.inputs[rows], problem.labels[rows]
        found = jax.grad(lambda w: jnp.mean(loss(_logits(w, inputs), labels)))(weights)
        updates, state = optimizer.update(found, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), batches)
    return weights


def _initial_weights(key: jax.Array, config: TaskConfig) -> Any:
    key_hidden, key_head = jax.random.split(key)
    sizes = (config.num_features, config.hidden)
    return {
        "hidden": jax.random.normal(key_hidden, sizes, jnp.float32) * (2 / sizes[0]) ** 0.5,
        "scale": jnp.ones(config.hidden, jnp.float32),
        "shift": jnp.zeros(config.hidden, jnp.float32),
        "head": jax.random.normal(key_head, (config.hidden, config.num_classes), jnp.float32)
        / config.hidden**0.5,
        "bias": jnp.zeros(config.num_classes, jnp.float32),
    }


def _logits(weights: Any, inputs: jax.Array) -> jax.Array:
    """A layer with batch normalisation, by the statistics of these very inputs, and a head."""
    hidden = inputs @ weights["hidden"]
    hidden = jax.nn.standardize(hidden, axis=0) * weights["scale"][None] + weights["shift"][None]
    return jax.nn.relu(hidden) @ weights["head"] + weights["bias"][None]
