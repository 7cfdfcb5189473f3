"""Evolve a loss and use it in an optax training loop of your own: all in plain Python calls.

Command:  python examples/research_script.py            (about a minute on 2 CPU cores)
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import edl_jax


def main(config: edl_jax.PretrainConfig | None = None, steps: int = 300) -> float:
    """Evolve a loss, then train a small classifier on a toy problem with it; returns accuracy."""
    result = edl_jax.pretrain(config, progress=True)
    loss = result.loss
    print(f"pairwise accuracy on held-out pairs: {result.metrics['pairwise_accuracy']:.4f}")

    key_x, key_teacher = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(key_x, (1024, 8))
    labels = jnp.argmax(inputs @ jax.random.normal(key_teacher, (8, 5)), axis=-1)

    model = nnx.Sequential(
        nnx.Linear(8, 32, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(32, 5, rngs=nnx.Rngs(1))
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Sequential, optimizer: nnx.Optimizer) -> jax.Array:
        # The only line that knows of the loss; for cross-entropy it would be
        # optax.losses.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()
        value, gradient = nnx.value_and_grad(lambda m: loss(m(inputs), labels).mean())(model)
        optimizer.update(model, gradient)
        return value

    for _ in range(steps):
        step(model, optimizer)
    accuracy = float(jnp.mean(jnp.argmax(model(inputs), axis=-1) == labels))
    print(f"training accuracy of a small classifier: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
