"""Harm a pretraining in every way that a machine and its users know; nothing saved may be lost.

Command:  python -m tests.endurance        (an hour or two on 2 idle CPU cores; cuts need root)

Prints a table: of each kind of harm, how often it met a run, how often the run survived it, and how
many bytes were lost that a checkpoint had. A wrong result or a traceback ends it with an error.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests import mismatched_processes, power_cut
from tests.forked import Run
from tests.kill_and_resume import (
    PLAIN,
    Harm,
    Outcome,
    differences,
    finish,
    kill_until_done,
    saved,
    survive,
    wait_for_checkpoint,
)

PER_RUN = 50  # of the harms: a run that many more met would be over before
Scenario = Callable[[Path, int, int, random.Random], Outcome]


def too_few_files(run_dir: Path, generations: int, tries: int, chance: random.Random) -> Outcome:
    """Let the run open no more files, most often while it resumes, else after a new checkpoint."""

    def starve() -> Harm:
        run = Run(run_dir, generations)
        if chance.random() < 0.7:
            run.wait_until_resuming()
            time.sleep(chance.uniform(0, 0.05))
        else:
            wait_for_checkpoint(run_dir, run)
            time.sleep(chance.expovariate(1 / 0.15))
        alive, rows = run.alive(), saved(run_dir)
        run.starve()
        status, said = run.end()
        assert (status != 0) == alive, said
        return Harm(alive, said, rows)

    return survive((starve() for _ in range(tries)), lambda: finish(run_dir, generations))


def two_writers(run_dir: Path, generations: int, tries: int, chance: random.Random) -> Outcome:
    """Start a second run in the folder while the first resumes; it must be refused."""

    def meet(plain: bool) -> Harm:
        first = Run(run_dir, generations)
        first.wait_until_resuming()
        _, refusal = Run(run_dir, generations, plain=plain).end()
        wait_for_checkpoint(run_dir, first)
        time.sleep(chance.expovariate(1 / 0.15))
        alive, rows = first.alive(), saved(run_dir)
        said = first.kill()
        assert not alive or f"in use by process {first.pid} on" in refusal, refusal
        return Harm(alive, said, rows)

    harms = (meet(plain=number < PLAIN) for number in range(tries))
    return survive(harms, lambda: finish(run_dir, generations))


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


def harmed(
    name: str, folder: Path, generations: int, tries: int, chance: random.Random
) -> tuple[Outcome, bool]:
    """Do one kind of harm to as many runs as it takes; whether the result of each is right."""
    total, right = Outcome(0, 0, 0), True
    for first in range(0, tries, PER_RUN):
        run_dir = folder / f"{name} {first}"
        found = SCENARIOS[name](run_dir, generations, min(PER_RUN, tries - first), chance)
        total = Outcome(*map(sum, zip(total, found, strict=True)))
        wrong = differences(folder / "whole", run_dir)
        right &= not wrong
        shutil.rmtree(run_dir)
        print(f"{name} so far: {total}; differing files: {wrong or 0}", file=sys.stderr, flush=True)
    return total, right


def main(tries: dict[str, int], mismatches: int, generations: int, seed: int) -> None:
    """Do harm, and print what became of it."""
    failed = False
    print("| harm | tries | survived | bytes lost |\n| --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        finish(folder / "whole", generations)
        for name, count in tries.items():
            if name == "cuts" and count and (why := power_cut.cannot()):
                print(f"| {name} | 0 | {why} | |", flush=True)
                continue
            if count:
                found, right = harmed(name, folder, generations, count, random.Random(seed))
                print(f"| {name} | {found.tries} | {found.survived} | {found.lost} |", flush=True)
                failed |= not right or found.survived < found.tries
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
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {name: getattr(arguments, name.replace(" ", "_")) for name in SCENARIOS}
    main(counts, arguments.mismatched_processes, arguments.generations, arguments.seed)
