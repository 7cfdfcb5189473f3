"""Harm a pretraining in every way that a machine and its users know; nothing saved may be lost.

Command:  python -m tests.endurance        (hours on 2 CPU cores; cuts need root)

Prints a table: of each kind of harm, how often it met a run, how often the run survived it, and how
many bytes were lost that a checkpoint had. A wrong result or a traceback ends it with an error.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests import mismatched_processes, power_cut
from tests.kill_and_resume import (
    Harm,
    Outcome,
    differences,
    finish,
    kill_until_done,
    saved,
    start,
    survive,
    wait_for_checkpoint,
)

Scenario = Callable[[Path, int, int, random.Random], Outcome]


def too_few_files(run_dir: Path, generations: int, tries: int, chance: random.Random) -> Outcome:
    """Let reads fail for now: the run may open few files, and stops where it needs one more."""
    finish(run_dir, generations)
    before = saved(run_dir)

    def starve() -> Harm:
        process = start(run_dir, generations, chance.randint(8, 13))
        said = process.communicate()[1]
        # What fails in Python or JAX itself does so in their words.
        return Harm(process.returncode != 0, "" if "Traceback" in said else said, before)

    return survive((starve() for _ in range(tries)), lambda: finish(run_dir, generations))


def two_writers(run_dir: Path, generations: int, tries: int, chance: random.Random) -> Outcome:
    """Start a second run in the folder while the first is under way; it must be refused."""

    def meet() -> Harm:
        first = start(run_dir, generations)
        wait_for_checkpoint(run_dir, first)
        second = start(run_dir, generations)
        refusal = second.communicate()[1]
        time.sleep(chance.expovariate(1 / 0.15))
        alive, rows = first.poll() is None, saved(run_dir)
        first.kill()
        said = first.communicate()[1]
        assert not alive or f"in use by process {first.pid} on" in refusal, refusal
        return Harm(alive, said, rows)

    return survive((meet() for _ in range(tries)), lambda: finish(run_dir, generations))


SCENARIOS: dict[str, Scenario] = {
    "kills": kill_until_done,
    "cuts": power_cut.cut_until_done,
    "read errors": too_few_files,
    "two writers": two_writers,
}


def mismatched(tries: int) -> Outcome:
    """Start processes that do not fit together: each must say why it ends, and write nothing."""
    faults = []
    for case in mismatched_processes.CASES[:tries]:
        with tempfile.TemporaryDirectory() as folder:
            faults.append(mismatched_processes.fault(case, Path(folder)))
    return Outcome(len(faults), faults.count(None), 0)


def main(tries: dict[str, int], mismatches: int, generations: int, seed: int) -> None:
    """Do harm, and print what became of it."""
    failed = False
    print("| harm | tries | survived | bytes lost |\n| --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        finish(whole, generations)
        for name, count in tries.items():
            if name == "cuts" and count and (why := power_cut.cannot()):
                print(f"| {name} | 0 | {why} | |", flush=True)
                continue
            if count:
                run_dir = Path(folder) / name
                found = SCENARIOS[name](run_dir, generations, count, random.Random(seed))
                print(f"| {name} | {found.tries} | {found.survived} | {found.lost} |", flush=True)
                wrong = differences(whole, run_dir)
                failed |= bool(wrong) or found.survived < found.tries
    if mismatches:
        found = mismatched(mismatches)
        print(f"| mismatched processes | {found.tries} | {found.survived} | {found.lost} |")
        failed |= found.survived < found.tries
    sys.exit(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, count in (("kills", 1000), ("cuts", 100), ("read errors", 100), ("two writers", 100)):
        parser.add_argument(f"--{name.replace(' ', '-')}", type=int, default=count)
    most = len(mismatched_processes.CASES)
    parser.add_argument("--mismatched-processes", type=int, default=most)
    parser.add_argument("--generations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {name: getattr(arguments, name.replace(" ", "_")) for name in SCENARIOS}
    main(counts, arguments.mismatched_processes, arguments.generations, arguments.seed)
