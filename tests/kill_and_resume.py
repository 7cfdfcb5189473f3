"""Kill a pretraining at random moments until it is done; the result must not change by a bit.

Command:  python -m tests.kill_and_resume --kills 100        (a few minutes on 2 CPU cores)
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from edl_jax import EvolvedLoss
from tests.forked import Run

ROOT = Path(__file__).parents[1]
PLAIN = 2  # runs of each folder that are not forked, so that starting is harmed too
RESULTS = ("metrics.jsonl", "held_out.jsonl", "results.json")


class Outcome(NamedTuple):
    """What became of harm done to a run.

    Attributes:
      tries: how often it met the run alive.
      survived: after how many of them it resumed from its newest complete checkpoint.
      lost: bytes of rows that it had to run again though a checkpoint had them.
    """

    tries: int
    survived: int
    lost: int


class Harm(NamedTuple):
    """One time that a run was harmed.

    Attributes:
      alive: whether it met the run alive.
      said: what the run wrote to its standard error before.
      rows: those that its newest complete checkpoint had.
    """

    alive: bool
    said: str
    rows: list[bytes]


def finish(run_dir: Path, generations: int) -> str:
    """Run to the end without harm; returns what it wrote to its standard error."""
    status, said = Run(run_dir, generations).end()
    assert status == 0, said
    return said


def saved(run_dir: Path) -> list[bytes]:
    """The rows before the newest checkpoint that surely counts: later rows are there too."""
    rows = run_dir / "metrics.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True) if rows.exists() else []
    steps = (step for step in _steps(run_dir) if step < len(lines))
    return lines[: max(steps, default=0)]


def survive(harms: Iterable[Harm], end: Callable[[], str]) -> Outcome:
    """Count what harm did to a run.

    Args:
      harms: each lets the run resume from what the one before left, and harms it.
      end: lets the run finish, and returns what it wrote to its standard error.
    """
    alive, rows, lost = 0, [], []

    def look(said: str) -> bool:
        """Whether the run got as far as to resume."""
        assert "Traceback" not in said, said
        if (found := re.search("resumed from ([0-9]+)", said)) is None:
            return False
        lost.append(sum(map(len, rows[int(found[1]) :])))
        return True

    for harm in harms:
        if look(harm.said):
            rows = harm.rows
        alive += harm.alive
    assert look(end())
    return Outcome(alive, alive - sum(map(bool, lost)), sum(lost))


def kill_until_done(run_dir: Path, generations: int, kills: int, chance: random.Random) -> Outcome:
    """Kill the run `kills` times, then let it finish.

    Four kills in five come a random time after the run's first new checkpoint; the waits are short,
    so that saving is often under way. The others come while it starts, or resumes.
    """

    def kill(plain: bool) -> Harm:
        run = Run(run_dir, generations, plain=plain)
        if (when := chance.random()) < 0.8:
            wait_for_checkpoint(run_dir, run)
            time.sleep(chance.expovariate(1 / 0.15))
        elif when < 0.9:
            run.wait_until_resuming()
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0, 2))
        alive, rows = run.alive(), saved(run_dir)
        return Harm(alive, run.kill(), rows)

    harms = (kill(plain=number < PLAIN) for number in range(kills))
    return survive(harms, lambda: finish(run_dir, generations))


def differences(one: Path, other: Path) -> list[str]:
    """Names of the result files that do not hold the same, bit for bit."""
    wrong = [name for name in RESULTS if (one / name).read_bytes() != (other / name).read_bytes()]
    # Safetensors writes its header in any order, so this file is compared by what it holds.
    first, second = (
        jax.tree.leaves(EvolvedLoss.load(x / "loss.safetensors")) for x in (one, other)
    )
    same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    return wrong if same else [*wrong, "loss.safetensors"]


def wait_for_checkpoint(run_dir: Path, run: Run) -> None:
    """Wait until a run has a new checkpoint, or ends."""
    before = max(_steps(run_dir), default=0)
    while run.alive() and max(_steps(run_dir), default=0) == before:
        time.sleep(0.005)


def _steps(run_dir: Path) -> list[int]:
    return [int(x.name) for x in run_dir.glob("checkpoints/*") if x.name.isdecimal()]


def main(kills: int, generations: int, seed: int) -> None:
    """Compare a run that is killed again and again with one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(whole, generations)
        found = kill_until_done(killed, generations, kills, random.Random(seed))
        wrong = differences(whole, killed)
    print(
        f"{kills} kills, {found.tries} of them before the run had ended; {found.lost} bytes lost; "
        f"differing files: {wrong or 0}"
    )
    sys.exit(bool(wrong or found.lost))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--generations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
