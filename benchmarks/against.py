"""This checkout beside another one: generations/s and images/s, in turns.

Command:  git worktree add ../v0.1.0 5115edc
          python -m benchmarks.against ../v0.1.0

In each round both checkouts run once, each in its own process, taking turns at going first. Each
is measured by its own `benchmarks` package (see `against_worker`), so that configurations may have
other fields. Compiled programs are kept from the first round on: its times to compile are from a
cold cache. Writes a table and its data to runs/against.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Part, commit, parser, table, write
from benchmarks.timing import Row, spread
from edl_jax.runs import huge_pages

NAME = "against"
ROOT = Path(__file__).parents[1]


def measured(checkout: Path, cache: Path, *, quick: bool) -> dict[str, Row]:
    """What the worker prints, in a process of the checkout's."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if huge_pages.wanted(environment):
        environment[huge_pages.VARIABLE] = huge_pages.SETTING
    # -P: or the folder of this file came before the checkout.
    command = [sys.executable, "-P", str(Path(__file__).with_name("against_worker.py"))]
    command += ["--quick"] * quick
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-4000:], flush=True)
        raise SystemExit(f"{checkout} cannot be measured: see its error above.")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both, and write the table."""
    found = parser(NAME, __doc__, repeats=6)
    found.add_argument("checkout", type=Path, help="folder of the other checkout")
    arguments = found.parse_args(argv)
    other = arguments.checkout.resolve()
    if not (other / "benchmarks" / "training_work.py").is_file():
        raise SystemExit(f"checkout is {other}; expected a folder with a checkout of edl_jax.")
    reference = f"{other.name} ({commit(other)})"
    checkouts = {reference: other, "this checkout": ROOT}
    rounds: dict[str, list[dict[str, Row]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as caches:
        for turn in range(2 if arguments.quick else arguments.repeats):
            for name in list(checkouts)[:: -1 if turn % 2 else 1]:
                cache = Path(caches) / name
                rounds[name].append(measured(checkouts[name], cache, quick=arguments.quick))
                seconds = {k: f"{v['seconds']:.3g} s" for k, v in rounds[name][-1].items()}
                print(f"round {turn + 1}, {name}: {seconds}", flush=True)
    sections, rows = [f"# This checkout beside {other.name}"], list[Row]()
    for setting, first in rounds[reference][0].items():
        here = [
            {
                "setting": setting,
                "name": name,
                "status": "ok",
                "compile_s": each[0][setting]["compile_s"],
                **spread([one[setting]["seconds"] for one in each]),
            }
            for name, each in rounds.items()
        ]
        amounts = {first["unit"]: first["amount"]}
        sections.append(table(Part(setting, (), reference, amounts), here))
        rows += here
    sections.append(
        "Median and quartiles over rounds of a process of each; the ratio is of times, so that "
        "less than 1 is faster than the other checkout."
    )
    print(f"\n{write(arguments.out, NAME, sections, rows)}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
