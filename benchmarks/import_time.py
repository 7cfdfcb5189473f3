"""How long starting takes: `edl_jax` beside what it is built on, each in fresh interpreters.

Command:  python -m benchmarks.import_time [--quick]
"""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.report import parser, table, write
from benchmarks.timing import Run, Subject, measure

NAME = "import_time"
LIBRARIES = "import jax, flax.nnx, evosax"
STATEMENTS = {
    LIBRARIES: LIBRARIES,
    "from edl_jax import pretrain": "from edl_jax import pretrain",
    "edl --help": "import sys; sys.argv = ['edl', '--help']; from edl_jax.cli import main; main()",
}


def fresh(statement: str) -> Run:
    """Runs of a statement, each in an interpreter of its own."""

    def run(count: int) -> None:
        for _ in range(count):
            command = [sys.executable, "-c", statement]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return run


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    arguments = parser(NAME, __doc__, repeats=11).parse_args(argv)
    subjects = [Subject(name, partial(fresh, code)) for name, code in STATEMENTS.items()]
    rows = measure(subjects, 1 if arguments.quick else arguments.repeats, seconds=60)
    write(arguments.out, NAME, ["# Starting", table("in a fresh Python", rows, LIBRARIES)], rows)


if __name__ == "__main__":
    main()
