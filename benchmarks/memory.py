"""Peak memory of a generation, whatever the population: 4,096 networks on 65,536 pairs, say.

Command:  python benchmarks/memory.py --population 4096 --pairs 65536
"""

import argparse
import resource
import time

import jax

from edl_jax import PretrainConfig
from edl_jax.evolution.problems import RankingProblem
from edl_jax.evolution.run import Evolution
from edl_jax.strategies import build_strategy


def main(population: int, pairs: int, generations: int) -> float:
    """Run some generations of the default configuration; returns and prints the peak in GiB.

    The peak is the process's largest resident set, so it counts Python, JAX and the compiler too.
    """
    config = PretrainConfig(population_size=population, pairs_per_generation=pairs)
    problem = RankingProblem(config)
    evolution = Evolution(
        problem, *build_strategy(config, problem.sample), generations=1 + generations, chunk=1
    )
    state, rows = evolution.advance(evolution.init(jax.random.key(0)), 1)
    before, start = _peak(), time.perf_counter()
    for _ in range(generations):
        state, rows = evolution.advance(state, 1)
    seconds = (time.perf_counter() - start) / generations
    peak = _peak()
    print(
        f"{population} networks x {pairs} pairs: peak resident set {peak:.2f} GiB "
        f"({before:.2f} GiB after the first generation), {seconds:.1f} s a generation, "
        f"best fitness {rows[-1]['best_fitness']:.3g}"
    )
    return peak


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--population", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=65536)
    parser.add_argument("--generations", type=int, default=2)
    main(**vars(parser.parse_args()))
