"""Images per second of whole training steps, beside PyTorch that does the same work.

Command:  python -m benchmarks.train_throughput [--quick]

A step crops, mirrors and normalises uint8 images that live on the device, runs a ResNet forward and
backward, and takes a step of SGD (Nesterov, L2 penalty, warm-up and cosine). On a CPU: ResNet-8 and
ResNet-20, batch 128, and as many XLA devices as there are cores for the variant that shares the
batch among them. On a GPU: ResNet-18, batch 512 and 1024. Writes tables and their data to
runs/train_throughput. PyTorch is left out where it is not installed:

    pip install torch

All have huge pages, as the command `edl` has; with `GLIBC_TUNABLES=` before the command none has.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from edl_jax.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":  # before JAX starts
    restart_with_huge_pages()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import jax
import jax.numpy as jnp

from benchmarks.peers import torch_loops
from benchmarks.peers.torch_training import torch_training
from benchmarks.report import parser, table, write
from benchmarks.timing import Row, Subject, measure
from benchmarks.training_work import TrainWork, our_training, works

NAME = "train_throughput"
OURS = "edl_jax"
TORCH = "PyTorch, float32"
CPU_STEPS, GPU_STEPS = 4, 16  # of one run


def subjects_of(work: TrainWork, *, quick: bool = False) -> list[Subject]:
    """Every contestant that can run here; says which cannot. Ours is first."""
    on_cpu = jax.default_backend() == "cpu"
    steps = CPU_STEPS if on_cpu else GPU_STEPS
    found = [Subject(OURS, our_training(work, steps), steps)]
    devices = jax.local_device_count()
    if devices > 1 and work.batch_size % devices == 0:
        together = our_training(work, steps, num_devices=devices)
        found.append(Subject(f"{OURS}, batch shared by {devices} devices", together, steps))
    if on_cpu:
        plain = our_training(work, steps, xla_gradients=True)
        found.append(Subject(f"{OURS}, XLA's weight gradients", plain, steps))
    if reason := torch_loops.missing():
        print(f"skipped PyTorch: {reason}", flush=True)
        return found
    kinds = [(False, False), (True, False), (False, True)] if on_cpu else [(True, True)]
    for bfloat16, compiled in kinds:
        name = "PyTorch, bfloat16 autocast" if bfloat16 else TORCH
        name += ", compiled" * compiled
        if compiled and quick:
            print(f"skipped {name}: it takes long", flush=True)
            continue
        prepare = torch_training(work, steps, bfloat16=bfloat16, compiled=compiled)
        found.append(Subject(name, prepare, steps))
    return found


def peak_flops(dtype: Any, *, quick: bool = False) -> float:
    """FLOP/s of the best of several large square products."""
    size = 256 if quick else 2048 if jax.default_backend() == "cpu" else 8192
    other = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)
    product, x, best = jax.jit(lambda x: x @ other), jnp.ones((size, size), dtype), float("inf")
    jax.block_until_ready(product(x))
    for _ in range(10):
        begin = time.perf_counter()
        x = jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    arguments = parser(NAME, __doc__, repeats=15).parse_args(argv)
    quick = arguments.quick
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    peak = peak_flops(dtype, quick=quick)
    sections, rows = ["# Training steps"], list[Row]()
    for work in works(quick):
        title = f"{work.model}, batch {work.batch_size}"
        print(f"{NAME}: {title}", flush=True)
        measured = measure(subjects_of(work, quick=quick), 2 if quick else arguments.repeats)
        torch_loops.forget_compiled()
        rates = {"images/s": work.batch_size, "% of peak": 100 * work.flops / peak}
        reference = next((row["name"] for row in measured if "PyTorch" in row["name"]), OURS)
        sections.append(table(title, measured, reference, rates))
        rows += [{"work": title, "flops": work.flops, **row} for row in measured]
    sections.append(
        "In turns in one process, in the steady state: crop, flip, normalisation, forward and "
        "backward pass and update, of images on the device. The peak is that of a large product "
        f"in {dtype} by XLA, {peak / 1e9:,.0f} GFLOP/s, measured in the same run; a step's "
        "operations are XLA's count of the forward pass, three times. Batch norm is over each "
        "device's share of a batch. edl_jax also checks that loss and gradient are finite."
    )
    write(arguments.out, NAME, sections, rows)


if __name__ == "__main__":
    main()
