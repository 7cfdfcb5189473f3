"""edl_jax itself as a contestant: its own scores, and its generations scanned on the device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import Contestant, Layers, Work
from benchmarks.timing import Run
from edl_jax.evolution.problems import PairFeatures, RankingProblem
from edl_jax.evolution.run import POPULATION, Evolution
from edl_jax.runs.devices import device_mesh
from edl_jax.strategies import build_strategy

NAME = "edl_jax"


def population_of(work: Work, layers: Layers) -> nnx.State:
    """The layers as a population of ours."""
    build = work.config().architecture().initial_state
    keys = jax.random.split(jax.random.key(0), work.population_size)
    population = jax.eval_shape(jax.vmap(build), keys)
    arrays = {
        i: {"kernel": jnp.asarray(k), "bias": jnp.asarray(b)} for i, (k, b) in enumerate(layers)
    }
    nnx.replace_by_pure_dict(population, {"layers": arrays})
    return population


def evaluation(work: Work, layers: Layers, features: np.ndarray, severities: np.ndarray) -> Run:
    """Runs of `RankingProblem.scores`."""
    population = population_of(work, layers)
    batch = PairFeatures(jnp.asarray(features), jnp.asarray(severities))
    score = RankingProblem(work.config()).scores

    def run(count: int) -> jax.Array:
        for _ in range(count - 1):
            score(population, batch)
        return jax.block_until_ready(score(population, batch))

    return run


def unit(work: Work) -> int:
    """Generations of a chunk: on a CPU about half a second's worth, between 1 and 25."""
    most = 2**24 if jax.default_backend() == "cpu" else 2**31
    return min(25, max(1, most // work.pair_evaluations))


def generations(work: Work, seed: int = 0) -> Run:
    """Runs of a chunk of generations; between two of them scalars alone go to the host."""
    problem = RankingProblem(work.config())
    strategy, params = build_strategy(problem.config, problem.sample)
    mesh = device_mesh(POPULATION, jax.devices()[:1])
    chunk = unit(work)
    evolution = Evolution(problem, strategy, params, generations=0, chunk=chunk, mesh=mesh)
    state = evolution.init(jax.random.key(seed))

    def run(count: int) -> list[dict[str, float]]:
        nonlocal state
        rows = []
        for _ in range(count):
            state, rows = evolution.advance(state, chunk)
        return rows

    return run


def _many(work: Work) -> Work:
    return dataclasses.replace(work, networks_at_a_time=1024)


EDL_JAX = Contestant(NAME, evaluation, generations, unit)
MANY_AT_A_TIME = Contestant(
    f"{NAME}, 1,024 networks at a time",
    lambda work, *given: evaluation(_many(work), *given),
    lambda work, seed: generations(_many(work), seed),
    unit,
)
