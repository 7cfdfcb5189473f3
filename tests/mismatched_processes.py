"""Start processes that do not fit together; each must end in time, with one line that says why.

Command:  python -m tests.mismatched_processes        (about three minutes on 2 CPU cores)
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.test_processes import ROOT, free_port

SECONDS = 180
CONFIG = "from tests.test_evolution import TINY\n\n\ndef get_config():\n    return TINY\n"
TRAIN = ["train", "--data.name", "digits", "--epochs", "1", "--data.train-examples", "64"]
ALIKE = "the processes were not started alike"
MET = "the processes did not meet"


class Case(NamedTuple):
    """Processes of one run.

    Attributes:
      what: what is wrong with them.
      given: for each, what it is given: its index, the number of processes, other arguments.
      says: what each says in its one line.
      train: whether they train, instead of evolving.
      devices: of each, in all.
    """

    what: str
    given: list[tuple[int, int, list[str]]]
    says: str
    train: bool = False
    devices: tuple[int, ...] = (1, 1, 1)


def differing(name: str, *values: str, train: bool = False) -> Case:
    given = [(index, 2, [f"--{name}", value]) for index, value in enumerate(values)]
    return Case(f"{name} {' and '.join(values)}", given, ALIKE, train)


CASES = [
    *(differing(*x) for x in [("seed", "0", "1"), ("severity", "surprisal", "brier")]),
    *(differing(*x) for x in [("generations", "5", "6"), ("strategy.std-init", "0.1", "0.2")]),
    *(
        differing(*x, train=True)
        for x in [
            ("seed", "0", "1"),
            ("learning-rate", "0.1", "0.2"),
            ("loss", "poly", "cross_entropy"),
            ("data.noise-rate", *(f"{x} --data.label-noise symmetric" for x in (0.2, 0.4))),
        ]
    ),
    Case("one is missing", [(0, 3, []), (2, 3, [])], MET),
    Case("the first is missing", [(1, 2, [])], MET),
    Case("other numbers of processes", [(0, 2, []), (1, 3, [])], MET),
    Case("the same index twice", [(0, 3, []), (1, 3, []), (1, 3, [])], MET),
    Case("other devices", [(0, 2, []), (1, 2, [])], "different devices", devices=(1, 2)),
]


def fault(case: Case, folder: Path) -> str | None:
    """Start the processes of a case; what went wrong, None if each said why it ended."""
    config = folder / "config.py"
    config.write_text(CONFIG)
    port = free_port()
    processes, began = [], time.monotonic()
    for place, (index, count, more) in enumerate(case.given):
        command = TRAIN if case.train else ["pretrain", "--config", str(config)]
        command = [*command, *(part for x in more for part in x.split())]
        command += ["--run-dir", str(folder / f"run{place}"), "--quiet"]
        command += ["--processes.coordinator", f"127.0.0.1:{port}", "--processes.timeout", "20"]
        command += [f"--processes.num-processes={count}", f"--processes.process-id={index}"]
        flags = f"--xla_force_host_platform_device_count={case.devices[place]}"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "edl_jax", *command],
                cwd=ROOT,
                env={**os.environ, "XLA_FLAGS": flags},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    wrong = None
    for process in processes:
        try:
            _, said = process.communicate(timeout=max(0.1, began + SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"still there after {SECONDS} s: {process.communicate()[1]}"
        lines = said.splitlines()
        if process.returncode != 2 or len(lines) != 1 or case.says not in lines[0]:
            wrong = wrong or f"status {process.returncode}: {said[-500:]}"
    left = [path.name for path in folder.glob("run*/*")]
    return wrong or (f"left {left}" if left else None)


def main() -> int:
    """Print a table of the cases; returns how many went wrong."""
    wrong = 0
    print("| Processes | each says why |\n|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = fault(case, Path(folder))
        wrong += found is not None
        what = f"{'train' if case.train else 'pretrain'}: {case.what}"
        print(f"| {what} | {'yes' if found is None else f'no: {found}'} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
