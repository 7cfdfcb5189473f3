"""Images per second of whole training steps, beside PyTorch that does the same work.

Command:  python -m benchmarks.train_throughput [--quick]

A step crops, mirrors and normalises uint8 images that live on the device, runs a ResNet forward and
backward, and takes a step of SGD (Nesterov, L2 penalty, warm-up and cosine). On a CPU: ResNet-8 and
ResNet-20, batch 128, and as many XLA devices as there are cores for the variant that shares the
batch among them. On a GPU: ResNet-18, batch 512 and 1024, and ResNet-8. Writes tables and their
data to runs/train_throughput. PyTorch is left out where it is not installed:

    pip install torch

All have huge pages, as the command `edl` has; with `GLIBC_TUNABLES=` before the command none has.
"""

import os
import time
from collections.abc import Sequence

from edl_jax.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":  # before JAX starts
    restart_with_huge_pages()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import jax
import jax.numpy as jnp

from benchmarks.peers import torch_loops
from benchmarks.peers.torch_training import torch_training
from benchmarks.report import Part, parser, run
from benchmarks.timing import Subject
from benchmarks.training_work import TrainWork, our_training, steps_of_a_run, works

NAME = "train_throughput"
OURS = "edl_jax"
# By device kind, FLOP/s of dense bfloat16 products in NVIDIA's data sheets of the H100 and H200
# (SXM, half of the 1,979 TFLOP/s with sparsity) and of the A100.
PEAKS = dict.fromkeys(("NVIDIA H200", "NVIDIA H100 80GB HBM3"), 989e12)
PEAKS |= dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12)
PEAKS |= dict.fromkeys(("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12)


def subjects_of(work: TrainWork, *, quick: bool = False) -> list[Subject]:
    """Every contestant that can run here; says which cannot. Ours is first."""
    on_cpu, steps = jax.default_backend() == "cpu", steps_of_a_run()
    found, devices = [Subject(OURS, our_training(work, steps), steps)], jax.local_device_count()
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
        precision = "bfloat16 autocast" if bfloat16 else "float32"
        name = f"PyTorch, {precision}{', compiled' * compiled}"
        if compiled and quick:
            print(f"skipped {name}: it takes long", flush=True)
            continue
        prepare = torch_training(work, steps, bfloat16=bfloat16, compiled=compiled)
        found.append(Subject(name, prepare, steps))
    return found


def peak_flops(dtype: str, *, quick: bool = False) -> tuple[float, str]:
    """FLOP/s of the device, by its data sheet or of the best of several large square products."""
    if known := PEAKS.get(jax.devices()[0].device_kind):
        return known, "dense products in bfloat16 by NVIDIA's data sheet"
    size = 256 if quick else 2048 if jax.default_backend() == "cpu" else 8192
    other = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)
    product, x, best = jax.jit(lambda x: x @ other), jnp.ones((size, size), dtype), float("inf")
    jax.block_until_ready(product(x))
    for _ in range(10):
        begin = time.perf_counter()
        x = jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best, f"a large product in {dtype} by XLA, measured in the same run"


def parts_and_notes(quick: bool) -> tuple[list[Part], str]:
    """A part for each work, and what is to be read below their tables."""
    on_cpu = jax.default_backend() == "cpu"
    peak, source = peak_flops("float32" if on_cpu else "bfloat16", quick=quick)
    parts, goal = [], 1.0 if on_cpu else 1.2
    for work in works(quick):
        subjects = subjects_of(work, quick=quick)
        reference = next((x.name for x in subjects if "PyTorch" in x.name), OURS)
        rates = {"images/s": work.batch_size, "GFLOP/s": work.flops / 1e9}
        rates["% of peak"] = 100 * work.flops / peak
        title = f"training step, {work.model}, batch {work.batch_size}"
        parts.append(Part(title, subjects, reference, rates, goal))
    return parts, (
        "Training steps, in turns in one process, in the steady state: crop, flip, normalisation, "
        "forward and backward pass and update, of images on the device. The peak is that of "
        f"{source}, {peak / 1e9:,.0f} GFLOP/s; a step's operations are XLA's count of the forward "
        "pass before it is optimised, three times. Batch norm is over each device's share of a "
        "batch. edl_jax also checks that loss and gradient are finite."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    arguments = parser(NAME, __doc__, repeats=15).parse_args(argv)
    parts, notes = parts_and_notes(arguments.quick)
    run(NAME, parts, ("# Training steps", notes), arguments)


if __name__ == "__main__":
    main()
