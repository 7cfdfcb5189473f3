"""edl_jax itself as a contestant: its own `score`, and its generations scanned on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import FLOAT_BYTES, Contestant, Layers, Run, Work
from edl_jax.evolution.engine import make_evolution

NAME = "edl_jax"


def population_of(work: Work, layers: Layers) -> nnx.State:
    """The layers as a population of ours."""
    build = work.config().architecture().initial_state
    keys = jax.random.split(jax.random.key(0), work.population_size)
    population = jax.eval_shape(jax.vmap(build), keys)
    nnx.replace_by_pure_dict(
        population,
        {
            "layers": {
                index: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
                for index, (kernel, bias) in enumerate(layers)
            }
        },
    )
    return population


def evaluation(work: Work, layers: Layers, features: np.ndarray, severities: np.ndarray) -> Run:
    """Runs of `Evolution.score`."""
    made = make_evolution(work.config())
    population = population_of(work, layers)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: made.observe(key, made.sample(key)))
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    batch = batch._replace(features=jnp.asarray(features), severities=jnp.asarray(severities))
    score = jax.jit(made.score)

    def run(count: int) -> jax.Array:
        for _ in range(count - 1):
            score(population, batch)
        return jax.block_until_ready(score(population, batch))

    return run


def unit(work: Work) -> int:
    """Generations of a chunk: about half a second's worth, between 1 and 25."""
    return min(25, max(1, 2**24 // work.pair_evaluations))


def generations(work: Work, seed: int = 0) -> Run:
    """Runs of a chunk of generations; between two of them nothing goes to the host."""
    made = make_evolution(work.config())
    key = jax.random.key(seed)

    def chunk(state, first):
        return jax.lax.scan(
            lambda state, index: made.generation(jax.random.fold_in(key, index), state),
            state,
            first + jnp.arange(unit(work)),
        )

    compiled = jax.jit(chunk, donate_argnums=0)
    state, first = jax.jit(made.init)(key), 0

    def run(count: int) -> jax.Array:
        nonlocal state, first
        log = {}
        for _ in range(count):
            state, log = compiled(state, jnp.int32(first))
            first += unit(work)
        return jax.block_until_ready(log["best_fitness"])

    return run


def _peak_bytes(work: Work) -> int:
    config = work.config()
    block = min(config.networks_at_a_time, work.population_size)
    return 2 * FLOAT_BYTES * block * work.num_pairs * max(work.hidden)


EDL_JAX = Contestant(NAME, lambda: None, evaluation, generations, _peak_bytes, unit)
