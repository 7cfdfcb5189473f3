"""Runs in processes of their own, forked from one that has imported all, which takes a second."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax

# What the first run compiles the others find: harm is to meet them at work.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

_FORK = multiprocessing.get_context("forkserver")
_SPAWN = multiprocessing.get_context("spawn")
_FORK.set_forkserver_preload(["tests.preloaded"])


class Run:
    """A pretraining that starts, or resumes, in a folder at once.

    Attributes:
      pid: of its process.
    """

    def __init__(self, run_dir: Path, generations: int, *, plain: bool = False):
        """Start it.

        Args:
          run_dir: the folder.
          generations: how many it has in all.
          plain: whether to start Python anew, so that harm may meet it while it imports.
        """
        self._stderr = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        # As many devices as here, where the result is compared.
        arguments = (self._stderr.name, run_dir, generations, jax.device_count())
        process = _SPAWN.Process if plain else _FORK.Process
        self._process = process(target=_pretrain, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def alive(self) -> bool:
        """Whether it is under way, and not done."""
        status = self._process.exitcode
        assert status in (None, 0), self._stderr.read()
        return status is None

    def wait_until_resuming(self) -> None:
        """Wait until it begins to read what is in the folder, or ends."""
        while self.alive() and not os.stat(self._stderr.name).st_size:
            time.sleep(0.001)

    def starve(self) -> None:
        """Let each file that it opens from now on be one too many."""
        with contextlib.suppress(ProcessLookupError):  # it is done
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (0, 0))

    def stop(self) -> None:
        """Stop it where it is."""
        with contextlib.suppress(ProcessLookupError):  # it is done
            os.kill(self.pid, signal.SIGSTOP)

    def kill(self) -> str:
        """Kill it, if it is still there; returns what it wrote to its standard error."""
        self._process.kill()
        return self.end()[1]

    def end(self) -> tuple[int, str]:
        """Wait for its end; returns its status, and what it wrote to its standard error."""
        self._process.join()
        status = self._process.exitcode
        self._process.close()
        assert status is not None
        with self._stderr:
            return status, self._stderr.read()


def _pretrain(stderr: str, run_dir: Path, generations: int, devices: int) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    # As in a program started by hand: else what tqdm locks with would outlive a kill.
    multiprocessing.set_start_method(None, force=True)
    jax.config.update("jax_num_cpu_devices", devices)
    import dataclasses

    from edl_jax import EDLError, pretrain
    from edl_jax.runs.checkpoints import Checkpoints
    from tests.test_evolution import TINY

    def resume(*arguments, original=Checkpoints.restore_latest):
        print("resuming", file=sys.stderr, flush=True)
        found = original(*arguments)
        print("resumed from", found[0], file=sys.stderr, flush=True)
        return found

    Checkpoints.restore_latest = resume
    try:
        pretrain(dataclasses.replace(TINY, generations=generations), run_dir=run_dir)
    except EDLError as error:
        sys.exit(str(error))
