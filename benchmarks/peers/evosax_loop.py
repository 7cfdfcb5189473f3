"""evosax's SimpleGA as its README shows it: ask, evaluate by jit and vmap, tell, from the host."""

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import SimpleGA

from benchmarks.common import Contestant, Layers, Work, random_layers
from benchmarks.timing import Run


def sample(key: jax.Array, num_pairs: int, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Fresh pairs: probabilities `[num_pairs, num_classes]` and labels `[num_pairs]`."""
    key_noise, key_chances = jax.random.split(key)
    magnitude, first, second, coin = jax.random.uniform(key_chances, (4, num_pairs))
    noise = jax.random.normal(key_noise, (num_pairs, num_classes))
    probabilities = jax.nn.softmax(noise / (0.1 * 100.0**magnitude)[:, None])
    cumulative = jnp.cumsum(probabilities, axis=-1)
    calibrated = jnp.sum(cumulative <= (first * cumulative[:, -1])[:, None], axis=-1)
    uninformed = (second * num_classes).astype(jnp.int32)
    labels = jnp.where(coin < 0.5, calibrated, uninformed)
    return probabilities, jnp.minimum(labels, num_classes - 1)


def observe(probabilities: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The features `[5, num_pairs]` and severities `[num_pairs]` of pairs."""
    log_p = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
    is_own = jax.nn.one_hot(labels, log_p.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, log_p, 0), axis=-1)
    rival = jnp.max(jnp.where(is_own, -jnp.inf, log_p), axis=-1)
    entropy = -jnp.sum(probabilities * log_p, axis=-1)
    moment = jnp.sum(probabilities**2, axis=-1)
    return jnp.stack([jnp.exp(own), -own / 4, jnp.exp(rival), entropy / 4, moment]), -own


def score_one(work: Work, layers: list, features: jax.Array, severities: jax.Array) -> jax.Array:
    """The share of the asked margins that one network violates; examples come first."""
    x = features.T
    for index, (kernel, bias) in enumerate(layers):
        if index:
            x = jax.nn.squareplus(x)
        x = jnp.matmul(x, kernel, precision="highest") + bias  # full float32 on a GPU too, as ours
    losses = jax.nn.softplus(x[:, 0])
    violated = demanded = jnp.zeros(())
    for shift in range(1, work.num_opponents + 1):
        difference = severities - jnp.roll(severities, shift)
        kept = jnp.sign(difference) * (losses - jnp.roll(losses, shift))
        violated += jnp.sum(jax.nn.relu(jnp.abs(difference) - kept))
        demanded += jnp.sum(jnp.abs(difference))
    return violated / jnp.maximum(demanded, jnp.finfo(jnp.float32).tiny)


def evaluation(work: Work, layers: Layers, features: np.ndarray, severities: np.ndarray) -> Run:
    """Runs of the vmapped score."""
    population, x, e = jax.device_put((layers, features, severities))
    score = jax.jit(jax.vmap(lambda one, x, e: score_one(work, one, x, e), in_axes=(0, None, None)))

    def run(count: int) -> jax.Array:
        for _ in range(count - 1):
            score(population, x, e)
        return jax.block_until_ready(score(population, x, e))

    return run


def generations(work: Work, seed: int = 0) -> Run:
    """Runs of a generation: the README's loop, the best fitness read by the host each time."""

    @jax.jit
    def evaluate(key: jax.Array, population: list) -> jax.Array:
        x, e = observe(*sample(key, work.num_pairs, work.num_classes))
        return jax.vmap(lambda one: score_one(work, one, x, e))(population)

    population = jax.device_put(random_layers(work))
    solution = jax.tree.map(lambda x: x[0], population)
    ga = SimpleGA(work.population_size, solution, std_schedule=lambda step: work.std)
    ga.elite_ratio = work.elite_ratio
    params = ga.default_params
    key = jax.random.key(seed)
    state = ga.init(key, population, evaluate(key, population), params)

    def run(count: int) -> float:
        nonlocal key, state
        best = float("inf")
        for _ in range(count):
            key, key_ask, key_eval = jax.random.split(key, 3)
            population, state = ga.ask(key_ask, state, params)
            fitness = evaluate(key_eval, population)
            state, metrics = ga.tell(key, population, fitness, state, params)
            best = float(metrics["best_fitness"])
        return best

    return run


EVOSAX = Contestant("evosax SimpleGA loop", evaluation, generations)
