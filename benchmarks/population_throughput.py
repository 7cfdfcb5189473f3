"""How fast a population of loss networks is scored and evolved, beside others with the same work.

Command:  python -m benchmarks.population_throughput [--quick]

Evaluation scores every network on given pairs; a whole generation draws fresh pairs, scores,
selects and mutates. Writes tables and their data to runs/population_throughput. Peers that are not
installed are left out, with a line that says how to install them:

    pip install torch evotorch
"""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import numpy as np

from benchmarks import ours
from benchmarks.common import Contestant, Work, random_layers
from benchmarks.peers import PEERS, evosax_loop
from benchmarks.report import Part, parser, run
from benchmarks.timing import Subject

NAME = "population_throughput"
POINTS = [(256, 4096), (2048, 4096)]  # networks, pairs
GOAL = 5.0  # times the speed of the fastest other
NOTES = (
    "In turns in one process. EvoTorch's elitist algorithm scores as many parents as children; "
    "the others keep a quarter; SimpleGA keeps no elite unchanged. GFLOP/s count the matrix "
    "products of the evaluation alone, which are in full float32."
)


def batch_of(work: Work) -> list[np.ndarray]:
    """Features and severities of fresh pairs, for the evaluation alone."""
    pairs = evosax_loop.sample(jax.random.key(1), work.num_pairs, work.num_classes)
    return [np.array(x) for x in evosax_loop.observe(*pairs)]


def able(contestants: Iterable[Contestant]) -> list[Contestant]:
    """Those that can run here; says why the others cannot."""
    missing = {contestant: contestant.missing() for contestant in contestants}
    for reason in sorted({reason for reason in missing.values() if reason}):
        print(f"skipped: {reason}", flush=True)
    return [contestant for contestant, reason in missing.items() if not reason]


def parts_of(work: Work, contestants: Sequence[Contestant]) -> tuple[Part, Part]:
    """The evaluation of a population, and whole generations."""
    layers, batch = random_layers(work), batch_of(work)
    evaluations = [
        Subject(c.name, partial(c.evaluation, work, layers, *batch)) for c in contestants
    ]
    generations = [
        Subject(c.name, partial(c.generations, work, 0), c.unit(work)) for c in contestants
    ]
    point = f"{work.population_size:,} networks × {work.num_pairs:,} pairs"
    rates = {"million pairs/s": work.pair_evaluations / 1e6, "GFLOP/s": work.flops / 1e9}
    return (
        Part(f"evaluation, {point}", evaluations, ours.NAME, rates, GOAL),
        Part(f"generation, {point}", generations, ours.NAME, {"generations/s": 1, **rates}, GOAL),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    arguments = parser(NAME, __doc__, repeats=15).parse_args(argv)
    points = [(16, 128)] if arguments.quick else POINTS
    contestants = able((ours.EDL_JAX, *PEERS))
    parts = [part for point in points for part in parts_of(Work(*point), contestants)]
    run(NAME, parts, ("# A population of loss networks", NOTES), arguments)


if __name__ == "__main__":
    main()
