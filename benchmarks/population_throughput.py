"""How fast a population of loss networks is scored and evolved, beside others with the same work.

Command:  python -m benchmarks.population_throughput [--quick]

Evaluation scores every network on given pairs; a whole generation draws fresh pairs, scores,
selects and mutates. Writes tables and their data to runs/population_throughput. Peers that are not
installed are left out, with a line that says how to install them:

    pip install torch evotorch
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks import ours
from benchmarks.common import Work, random_layers
from benchmarks.peers import PEERS, numpy_loop, torch_loops
from benchmarks.report import parser, table, write
from benchmarks.timing import Row, Subject, measure

NAME = "population_throughput"


def batch_of(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Features and severities of fresh pairs, for the evaluation alone."""
    rng = np.random.default_rng(1)
    return numpy_loop.observe(*numpy_loop.sample(rng, work.num_pairs, work.num_classes))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    found = parser(NAME, __doc__, repeats=15)
    found.add_argument("--populations", type=int, nargs="+", default=[256, 2048])
    found.add_argument("--pairs", type=int, nargs="+", default=[4096])
    arguments = found.parse_args(argv)
    repeats = arguments.repeats
    points = [(p, n) for p in arguments.populations for n in arguments.pairs]
    if arguments.quick:
        repeats, points = 2, [(16, 128)]
    contestants = [c for c in (ours.EDL_JAX, *PEERS) if c.missing() is None]
    for reason in sorted({c.missing() or "" for c in PEERS} - {""}):
        print(f"skipped: {reason}", flush=True)
    sections, rows = ["# A population of loss networks"], list[Row]()
    for point in points:
        work = Work(*point)
        layers, batch = random_layers(work), batch_of(work)
        evaluations = [
            Subject(c.name, partial(c.evaluation, work, layers, *batch)) for c in contestants
        ]
        generations = [
            Subject(c.name, partial(c.generations, work, 0), c.unit(work)) for c in contestants
        ]
        flops = {"GFLOP/s": work.flops / 1e9}
        for kind, subjects, rates in (
            ("evaluation", evaluations, {"million pairs/s": work.pair_evaluations / 1e6, **flops}),
            ("generation", generations, {"generations/s": 1, **flops}),
        ):
            title = f"{kind}, {point[0]:,} networks × {point[1]:,} pairs"
            print(f"{NAME}: {title}", flush=True)
            measured = measure(subjects, repeats)
            torch_loops.forget_compiled()
            sections.append(table(title, measured, ours.NAME, rates))
            shared = {"kind": kind, "population": point[0], "pairs": point[1]}
            rows += [shared | row for row in measured]
    sections.append(
        "In turns in one process. EvoTorch's elitist algorithm scores as many parents as children; "
        "the others keep a quarter; SimpleGA keeps no elite unchanged. GFLOP/s count the matrix "
        "products of the evaluation alone."
    )
    write(arguments.out, NAME, sections, rows)


if __name__ == "__main__":
    main()
