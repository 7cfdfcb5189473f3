"""Cut the power under a pretraining at random moments; no row that a checkpoint has may be lost.

Command, as root:  python -m tests.power_cut --cuts 10

The run is on an ext4 file system in a file, which is shut down without writing back what it holds
in memory, as a power cut does: its cache and its journal are lost.
"""

import argparse
import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.kill_and_resume import differences, finish, start, wait_for_change

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2
_MEGABYTES = 256


class Outcome(NamedTuple):
    """What became of cuts.

    Attributes:
      tries: how many cuts met the run alive.
      survived: after how many it resumed from the newest checkpoint that was complete before.
      lost: rows before a checkpoint that was complete before a cut, and that a cut took.
      wrong: names of result files that differ from an uninterrupted run's.
    """

    tries: int
    survived: int
    lost: int
    wrong: list[str]


def cannot() -> str:
    """Why the power cannot be cut here; nothing where it can."""
    if os.geteuid() != 0:
        return "only root may mount a file system to cut"
    if not all(map(shutil.which, ("mkfs.ext4", "mount", "umount"))):
        return "mkfs.ext4 or mount is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _mounted(_image(Path(folder))):
                return ""
        except subprocess.CalledProcessError as error:
            return f"no file system can be mounted from a file here: {error.stderr.strip()}"


def cut_until_done(folder: Path, generations: int, cuts: int, seed: int) -> Outcome:
    """Cut a run's power `cuts` times, then let it finish, and compare with one that was not cut."""
    chance, image = random.Random(seed), _image(folder)
    tries = survived = lost = 0
    for _ in range(cuts):
        with _mounted(image) as disk:
            process = start(disk / "run", generations)
            wait_for_change(disk / "run", process)
            time.sleep(chance.expovariate(1 / 0.5))
            # As much of it as is complete before the cut, which comes a moment later.
            had = max(_steps(disk / "run"), default=0)
            if process.poll() is None:
                tries += 1
            handle = os.open(disk, os.O_RDONLY)
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
            os.close(handle)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        with _mounted(image) as disk:
            rows = disk / "run" / "metrics.jsonl"
            kept = len(rows.read_bytes().splitlines()) if rows.exists() else 0
            missing = max(had - kept, 0)
            lost += missing
            survived += not missing and max(_steps(disk / "run"), default=0) >= had
    with _mounted(image) as disk:
        finish(disk / "run", generations)
        aside = [*(disk / "run").glob("damaged-*")]
        shutil.copytree(disk / "run", folder / "cut")
    finish(folder / "whole", generations)
    print(f"{len(aside)} checkpoints were set aside")
    return Outcome(tries, survived, lost, differences(folder / "whole", folder / "cut"))


def _steps(run_dir: Path) -> list[int]:
    """Steps of checkpoints that count: the next one's rows are written only once they do."""
    rows = run_dir / "metrics.jsonl"
    written = len(rows.read_bytes().splitlines()) if rows.exists() else 0
    names = [x.name for x in (run_dir / "checkpoints").glob("[0-9]*") if x.name.isdecimal()]
    return [int(x) for x in names if int(x) < written]


def _image(folder: Path) -> Path:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(_MEGABYTES << 20)
    _run("mkfs.ext4", "-q", "-F", str(image))
    return image


@contextlib.contextmanager
def _mounted(image: Path) -> Iterator[Path]:
    disk = image.with_suffix(".mount")
    disk.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", str(image), str(disk))
    try:
        yield disk
    finally:
        _run("umount", str(disk))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main(cuts: int, generations: int, seed: int) -> None:
    """Cut, and say what was lost."""
    if why := cannot():
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as folder:
        found = cut_until_done(Path(folder), generations, cuts, seed)
    print(
        f"{cuts} cuts, {found.tries} of them before the run had ended; {found.survived} resumed "
        f"from the last checkpoint, {found.lost} rows lost; differing files: {found.wrong or 0}"
    )
    raise SystemExit(bool(found.wrong or found.lost))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
