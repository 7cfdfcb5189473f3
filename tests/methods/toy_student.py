"""A linear student, which looks ahead by gradient descent; in float64 where that is enabled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edl_jax.losses.method import Student

CLASSES, FEATURES, BATCH, RATE = 4, 6, 12, 0.5


def toy_student(step: int) -> Student:
    """A student after some step, and what it may be asked; call it under `jit`."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    classes = lambda *shape: jnp.asarray(rng.integers(CLASSES, size=shape), jnp.int32)  # noqa: E731
    weights, images, labels = draw(FEATURES, CLASSES), draw(8, BATCH, FEATURES), classes(8, BATCH)
    held_out, held_labels = draw(BATCH, FEATURES), classes(BATCH)

    def validation(weights: jax.Array = weights) -> tuple[jax.Array, jax.Array]:
        return held_out @ weights, held_labels

    def lookahead(losses: Callable[..., jax.Array], steps: int) -> tuple[jax.Array, jax.Array]:
        trained = weights
        for step in range(1, 1 + steps):
            loss = lambda w, x=images[step], y=labels[step]: losses(x @ w, y).mean()  # noqa: E731
            trained = trained - RATE * jax.grad(loss)(trained)
        return validation(trained)

    progress = jnp.asarray(0.3, weights.dtype)
    now = images[0] @ weights, labels[0]
    return Student(jnp.asarray(step, jnp.int32), progress, *now, validation, lookahead)


def loss_ahead(student: Student, losses: Callable[..., jax.Array], steps: int) -> jax.Array:
    """Validation cross-entropy after the student's steps with `losses`."""
    logits, labels = student.lookahead(losses, steps)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def as_float64(tree: Any) -> Any:
    """A state on the host, its floating-point arrays in float64."""
    wide = lambda x: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x  # noqa: E731
    return jax.tree.map(wide, jax.device_get(tree))


def assert_gradient(
    function: Callable[[Any], jax.Array], tree: Any, gradient: Any, step: float = 1e-6
) -> None:
    """A gradient equals the difference quotients along three random directions."""
    rng = np.random.default_rng(1)
    directions = jax.tree.map(lambda x: rng.normal(size=(3, *x.shape)), tree)

    @jax.jit
    def quotient(direction: Any) -> jax.Array:
        def at(end: float) -> jax.Array:
            return function(jax.tree.map(lambda x, d: x + end * d, tree, direction))

        return (at(step) - at(-step)) / (2 * step)

    for i in range(3):
        direction = jax.tree.map(lambda x, i=i: x[i], directions)
        products = jax.tree.map(lambda x, y: np.sum(x * np.asarray(y)), direction, gradient)
        expected = float(quotient(direction))
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), expected, rtol=1e-5)
        assert abs(expected) > 1e-6
