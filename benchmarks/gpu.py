"""What other benchmarks measure, on one GPU in under 8 minutes, the most valuable parts first.

Command:  python -m benchmarks.gpu [--quick]

Run it on an NVIDIA H200, H100 or A100, after `pip install -e ".[cuda]" torch`; it downloads
nothing. runs/gpu/gpu.md and its data, gpu.json, are written before each part and at the end, so
that a run that is cut leaves what it has done. What fails does not stop the rest, and a part that
no longer fits is named. `--quick` runs on a CPU too.
"""

import faulthandler
import os
import tempfile
from collections.abc import Sequence

import jax

from benchmarks import loss_overhead, ours, population_throughput, train_throughput
from benchmarks.common import Work
from benchmarks.peers import PEERS
from benchmarks.report import Part, parser, run

NAME = "gpu"
SECONDS, GRACE = 430.0, 40.0  # for all parts; after both the process ends, even within a part
POPULATIONS = [(2048, 4096), (256, 4096), (16_384, 4096)]  # networks, pairs
CLASSES = [(128, 1000), (128, 50_000)]  # examples, classes
# Of PyTorch's, those that are not made for a CPU's cache.
CHOSEN = ("evosax SimpleGA loop", "torch vmap", "torch vmap, compiled", "torch batched, compiled")


def parts_and_notes(quick: bool) -> tuple[list[Part], str]:
    """The parts in order, with the seconds that each is thought to take, and what to read last."""
    (first, *more), notes = train_throughput.parts_and_notes(quick)
    overhead, *alone = loss_overhead.parts_of(quick, CLASSES, few=True)
    peers = (peer for peer in PEERS if peer.name in CHOSEN)
    contestants = population_throughput.able((ours.EDL_JAX, ours.MANY_AT_A_TIME, *peers))
    points = [(16, 128)] if quick else POPULATIONS
    populations = [population_throughput.parts_of(Work(*x), contestants) for x in points]
    ordered = [(first, 75), (overhead, 45), *((x, 40) for _, x in populations)]
    ordered += [*((x, 7) for x in alone), *zip(more, (75, 30), strict=False)]
    ordered += [(x, 20) for x, _ in populations]
    parts = [part._replace(needs=0 if quick else seconds) for part, seconds in ordered]
    return parts, f"{notes}\n\n{population_throughput.NOTES}\n\n{loss_overhead.NOTES}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what fits, and write the tables."""
    found = parser(NAME, __doc__, repeats=10)
    found.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts")
    arguments = found.parse_args(argv)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the peers use one
    if jax.default_backend() != "gpu" and not arguments.quick:
        raise SystemExit('JAX sees no GPU; pip install -e ".[cuda]", or add --quick on a CPU.')
    faulthandler.dump_traceback_later(arguments.seconds + GRACE, exit=True, file=2)
    parts, notes = parts_and_notes(arguments.quick)
    run(NAME, parts, ("# On a GPU", notes), arguments, seconds=5, budget=arguments.seconds)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as compiled:
        jax.config.update("jax_compilation_cache_dir", compiled)  # a step comes in several parts
        main()
