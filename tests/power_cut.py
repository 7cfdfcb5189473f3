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
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.forked import Run
from tests.kill_and_resume import (
    PLAIN,
    Harm,
    Outcome,
    differences,
    finish,
    saved,
    survive,
    wait_for_checkpoint,
)

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2
_MEGABYTES = 256


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


def cut_until_done(run_dir: Path, generations: int, cuts: int, chance: random.Random) -> Outcome:
    """Cut the run's power `cuts` times, let it finish, and put its folder at `run_dir`.

    Each cut comes a random time after the first new checkpoint.
    """
    image = _image(run_dir.parent)

    def cut(plain: bool) -> Harm:
        with _mounted(image) as disk:
            run = Run(disk / "run", generations, plain=plain)
            wait_for_checkpoint(disk / "run", run)
            time.sleep(chance.expovariate(1 / 0.3))
            alive, rows = run.alive(), saved(disk / "run")
            run.stop()  # the process and the disk stop at one moment
            handle = os.open(disk, os.O_RDONLY)
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
            os.close(handle)
            return Harm(alive, run.kill(), rows)

    def end() -> str:
        with _mounted(image) as disk:
            said = finish(disk / "run", generations)
            shutil.copytree(disk / "run", run_dir)
        return said

    return survive((cut(plain=number < PLAIN) for number in range(cuts)), end)


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
    """Compare a run whose power is cut again and again with one whose power is not."""
    if why := cannot():
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        finish(whole, generations)
        found = cut_until_done(cut, generations, cuts, random.Random(seed))
        wrong = differences(whole, cut)
    print(
        f"{cuts} cuts, {found.tries} of them before the run had ended; {found.lost} bytes lost; "
        f"differing files: {wrong or 0}"
    )
    raise SystemExit(bool(wrong or found.lost))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
