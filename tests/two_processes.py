"""What two processes that are one run tell and refuse; `test_processes` starts both and reads it.

Usage: python -m tests.two_processes COORDINATOR INDEX, with two CPU devices each.
"""

import contextlib
import dataclasses
import json
import os
import socket
import stat
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from edl_jax.data.config import DataConfig
from edl_jax.errors import DataError, EDLError, RunFolderError
from edl_jax.runs import processes
from edl_jax.runs.joining import Processes, host_and_port
from edl_jax.runs.processes import agree, all_do, arrays_from_first, first_does, in_any


class Odd(DataError):
    """Of a kind that the others do not know."""


def fail(error):
    raise error


def told(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except EDLError as error:
        return f"{type(error).__name__}: {error}"
    except TypeError as error:
        return f"itself: {error}"


def open_sockets():
    count = 0
    for handle in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the folder itself is closed already
            count += stat.S_ISSOCK(os.fstat(handle).st_mode)
    return count


def sum_on_all():
    from edl_jax.runs.devices import device_mesh, on_every_device

    return float(on_every_device(lambda: jax.lax.psum(jnp.ones(()), "x"), device_mesh("x"))())


def connections(coordinator):
    """Whether the coordinator takes calls at another address of its host; new sockets later on."""
    before = open_sockets()
    sums = sum_on_all(), in_any(True)
    try:
        socket.create_connection(("127.0.0.2", host_and_port(coordinator)[1]), timeout=5).close()
        elsewhere = True
    except ConnectionRefusedError:
        elsewhere = False
    return {"sums": sums, "new_sockets": open_sockets() - before, "elsewhere": elsewhere}


def exchanged(index):
    """Values and errors of the first, or of one, in both."""
    tree = {
        "a": np.float32([[1.5, -0.0]]),
        "b": (np.array([True, False]), np.array(3, np.int8), np.zeros((0, 2), np.float32)),
        "c": np.arange(5).astype(ml_dtypes.bfloat16),
    }
    mine = jax.tree.map(np.zeros_like, tree) if index else tree
    rows = [{"x": float("nan"), "y": None, "z": "é" * 3000}]
    plain, shared = first_does(lambda: (7, rows)), arrays_from_first(mine)
    same = jax.tree.map(
        lambda x, y: x.dtype == y.dtype and x.tobytes() == y.tobytes(), shared, tree
    )

    def slowly():
        time.sleep(0.5)
        return (index, "slow")

    return {
        "json": [plain[0], str(plain[1][0]["x"]), plain[1][0]["y"], len(plain[1][0]["z"])],
        "arrays": all(jax.tree.leaves(same)),
        "slow": first_does(slowly),
        "unshared": first_does(slowly, share=False),
        "refused": told(first_does, lambda: fail(RunFolderError("no room"))),
        "odd": told(first_does, lambda: fail(Odd("strange"))),
        "bug": told(first_does, lambda: fail(TypeError("a bug"))),
        "second": told(all_do, lambda: fail(DataError("no file")) if index else "done"),
        "all": told(all_do, lambda: index),
    }


def refused(index):
    """What each of two processes says that were given different things to do."""
    from edl_jax import TrainConfig, pretrain, train
    from edl_jax.training.training import make_trainer
    from tests.test_evolution import TINY

    small = TrainConfig(
        epochs=1,
        batch_size=64,
        data=DataConfig(name="digits", train_examples=64, test_examples=64),
    )

    def differing(config, **second):
        return dataclasses.replace(config, **second) if index else config

    def squared(logits, labels):
        return jnp.square(logits - jax.nn.one_hot(labels, logits.shape[-1])).mean(-1)

    losses = squared, lambda logits, labels: 2 * squared(logits, labels)
    noisy = dataclasses.replace(small.data, label_noise="symmetric", noise_rate=0.2)
    elsewhere = dataclasses.replace(small.data, data_dir="/elsewhere")
    processes.commit = lambda: "ab" * 20
    found = {
        "alike": told(agree, lambda: {"x": 1}),
        "pretrain": told(pretrain, differing(TINY, severity="brier", generations=7)),
        "key": told(pretrain, TINY, key=jax.random.key(index)),
        "train": told(train, differing(small, data=noisy, loss="poly", seed=1)),
        "loss": told(train, differing(small, data=elsewhere), loss=losses[index]),
        "seeds": told(make_trainer(small), [0, 1 + index]),
        "many": told(agree, lambda: {str(x): "v" * 500 + str(index) for x in range(50)}),
    }
    processes.commit = lambda: "ab" * 20 if index else None
    found["no_git"] = told(agree, dict)
    processes.commit = lambda: f"{index}" * 40
    return {**found, "commit": told(agree, dict)}


def main(coordinator, index):
    Processes(coordinator=coordinator, num_processes=2, process_id=index).join()
    found = connections(coordinator) | exchanged(index) | refused(index)
    print("found:", json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
