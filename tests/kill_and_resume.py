"""Kill a pretraining at random moments until it is done; the result must not change by a bit.

Command:  python -m tests.kill_and_resume --kills 100        (about half an hour on 2 CPU cores)
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from edl_jax import EvolvedLoss

ROOT = Path(__file__).parents[1]
SCRIPT = """
import dataclasses, sys
from edl_jax import pretrain
from tests.test_evolution import TINY
pretrain(dataclasses.replace(TINY, generations=int(sys.argv[2])), run_dir=sys.argv[1])
"""
RESULTS = ("metrics.jsonl", "held_out.jsonl", "results.json")


def start(run_dir: Path, generations: int) -> subprocess.Popen:
    """Start, or resume, the run in a folder."""
    command = [sys.executable, "-c", SCRIPT, str(run_dir), str(generations)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(run_dir: Path, generations: int) -> float:
    """Run to the end without a kill; returns the seconds it took."""
    began = time.monotonic()
    process = start(run_dir, generations)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return time.monotonic() - began


def kill_until_done(run_dir: Path, generations: int, kills: int, chance: random.Random) -> int:
    """Kill the run `kills` times, then let it finish; returns how many kills met it alive.

    Four kills in five come a random time after the run's files first changed, so after the
    start-up, which is all alike; the waits are short, so that saving is often under way.
    """
    met = 0
    for _ in range(kills):
        process = start(run_dir, generations)
        if chance.random() < 0.8:
            wait_for_change(run_dir, process)
        time.sleep(chance.expovariate(1 / 0.15))
        if process.poll() is None:
            met += 1
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finish(run_dir, generations)
    return met


def differences(one: Path, other: Path) -> list[str]:
    """Names of the result files that do not hold the same, bit for bit."""
    wrong = [name for name in RESULTS if (one / name).read_bytes() != (other / name).read_bytes()]
    # Safetensors writes its header in any order, so this file is compared by what it holds.
    first, second = (
        jax.tree.leaves(EvolvedLoss.load(x / "loss.safetensors")) for x in (one, other)
    )
    same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    return wrong if same else [*wrong, "loss.safetensors"]


def wait_for_change(run_dir: Path, process: subprocess.Popen) -> None:
    """Wait until a run writes rows, or ends."""

    def stamp() -> float:
        path = run_dir / "metrics.jsonl"
        return path.stat().st_mtime_ns if path.exists() else 0

    before = stamp()
    while process.poll() is None and stamp() == before:
        time.sleep(0.005)


def main(kills: int, generations: int, seed: int) -> None:
    """Compare a run that is killed again and again with one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(whole, generations)
        met = kill_until_done(killed, generations, kills, random.Random(seed))
        wrong = differences(whole, killed)
    print(f"{kills} kills, {met} of them before the run had ended; differing files: {wrong or 0}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--generations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
