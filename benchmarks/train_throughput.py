"""Images per second of whole training steps, beside PyTorch that does the same work.

Command:  python -m benchmarks.train_throughput [--quick]

A step crops, mirrors and normalises uint8 images that live on the device, runs a ResNet forward and
backward, and takes a step of SGD (Nesterov, L2 penalty, warm-up and cosine). On a CPU: ResNet-8 and
ResNet-20, batch 128, and as many XLA devices as there are cores for the variant that shares the
batch among them. On a GPU: ResNet-18, batch 512 and 1024. All in one process, in turns. Writes a
table and its data to runs/train_throughput. A stopped run goes on where it ended. PyTorch is left
out where it is not installed:

    pip install torch

All have huge pages, as the command `edl` has; with `GLIBC_TUNABLES=` before the command none has.
"""

import os
from collections.abc import Sequence

from benchmarks.cores import num_cores
from edl_jax.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":  # before JAX starts
    restart_with_huge_pages()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_cores()))

import jax
import jax.numpy as jnp

from benchmarks import ceilings as ceiling, training_work
from benchmarks.common import caption, open_folder, parser
from benchmarks.peers import torch_loops
from benchmarks.peers.torch_training import torch_training
from benchmarks.report import number, table, write_report
from benchmarks.timing import Limits, Row, Subject, measure
from benchmarks.training_work import TrainWork, our_training, patch
from edl_jax.models import layers
from edl_jax.runs.folder import read_json
from edl_jax.training import programs

NAME = "train_throughput"
CEILINGS = "ceilings.jsonl"
OURS = "edl_jax"
XLA_GRADIENTS = "edl_jax, XLA's weight gradients"
CPU_STEPS, GPU_STEPS = 4, 16  # of one run


def works(quick: bool) -> list[TrainWork]:
    """What is measured on this backend."""
    if quick:
        return [training_work.QUICK]
    if jax.default_backend() == "cpu":
        return [TrainWork("resnet8", 128), TrainWork("resnet20", 128)]
    return [TrainWork("resnet18", 512), TrainWork("resnet18", 1024)]


def subjects_of(work: TrainWork, *, quick: bool = False) -> list[Subject]:
    """Every contestant that can run here; says which cannot. Ours is first."""
    on_cpu = jax.default_backend() == "cpu"
    steps = CPU_STEPS if on_cpu else GPU_STEPS
    found = [Subject(OURS, our_training(work, steps), steps)]
    devices = jax.local_device_count()
    if devices > 1 and work.batch_size % devices:
        print(f"skipped {devices} devices: they cannot share a batch of {work.batch_size}")
    elif devices > 1:
        together = our_training(work, steps, num_devices=devices)
        found.append(Subject(f"{OURS}, batch shared by {devices} devices", together, steps))
    if on_cpu:
        if hasattr(layers, "convolve"):
            plain = patch(layers, "convolve", jax.lax.conv_general_dilated)
            found.append(Subject(XLA_GRADIENTS, our_training(work, steps, patched=plain), steps))
        else:
            print(f"skipped {XLA_GRADIENTS}: edl_jax.models.layers.convolve does not exist")
        if work.model == "resnet8":
            # "auto" would be bfloat16 where the backend is not taken for a CPU.
            loop = our_training(
                work, 1, precision="float32", patched=patch(programs, "on_cpu", lambda mesh: False)
            )
            found.append(Subject(f"{OURS}, steps in a loop on the device", loop))
    return found + _of_torch(work, steps, on_cpu=on_cpu, quick=quick)


def _of_torch(work: TrainWork, steps: int, *, on_cpu: bool, quick: bool) -> list[Subject]:
    """PyTorch's contestants; the first is what all are compared with."""
    if reason := torch_loops.missing():
        print(f"skipped PyTorch: {reason}", flush=True)
        return []
    kinds = [(False, False), (True, False), (False, True)] if on_cpu else [(True, True)]
    kinds += [] if on_cpu else [(True, False)]
    found = []
    for bfloat16, compiled in kinds:
        name = f"PyTorch, {'bfloat16 autocast' if bfloat16 else 'float32'}"
        name += ", compiled" * compiled
        if compiled and (quick or (reason := torch_loops.missing_compiler())):
            print(f"skipped {name}: {'it takes long' if quick else reason}", flush=True)
            continue
        prepare = torch_training(work, steps, bfloat16=bfloat16, compiled=compiled)
        found.append(Subject(name, prepare, steps))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    arguments = parser(NAME, __doc__, activation=False).parse_args(
        None if argv is None else list(argv)
    )
    repeats = arguments.repeats or (2 if arguments.quick else 15)
    folder = open_folder(NAME, arguments, {"quick": arguments.quick, "repeats": repeats})
    rows: list[Row] = folder.resume_rows()
    peak = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    found = ceiling.matrix_flops(jnp.dtype(peak), quick=arguments.quick)
    folder.append_rows([{"matrix_flops": max(found.values())}], CEILINGS)
    best = max(row["matrix_flops"] for row in folder.read_rows(CEILINGS))
    tables = []
    for work in works(arguments.quick):
        here = [row for row in rows if _is_of(row, work)]
        subjects = subjects_of(work, quick=arguments.quick)
        print(f"{NAME}: {work.model}, batch {work.batch_size}", end="", flush=True)
        # Ratios need one run: work that lacks a contestant is measured again as a whole.
        if {subject.name for subject in subjects} <= {row["contestant"] for row in here}:
            print(" finished before", flush=True)
        else:
            print(flush=True)
            measured = measure(subjects, Limits(repeats, 30.0, float("inf")))
            shared = {"model": work.model, "batch_size": work.batch_size, "flops": work.flops}
            rows = folder.resume_rows(lambda row, work=work: not _is_of(row, work))
            here = [{**shared, "contestant": name, **row} for name, row in measured.items()]
            folder.append_rows(here)
            rows += here
            torch_loops.forget_compiled()
            jax.clear_caches()
        tables += _section(here, best, peak)
    sections = [
        "# Training steps",
        "Crop, flip, normalisation, forward, backward and update, of images on the device, in the "
        "steady state. GFLOP/s count convolutions and matrix products alone. The ceiling is a "
        f"square {peak} product by XLA, {best / 1e9:,.0f} GFLOP/s, measured in the same run. Batch "
        "norm is over each device's share of a batch. edl_jax also checks in every step that loss "
        "and gradient are finite.",
        *tables,
        caption(folder),
    ]
    environment = read_json(folder.path / "environment.json")
    data = {"rows": rows, "matrix_flops": best, "peak": peak, "environment": environment}
    write_report(folder, NAME, sections, data)


def _is_of(row: Row, work: TrainWork) -> bool:
    return (row["model"], row["batch_size"]) == (work.model, work.batch_size)


def _section(rows: list[Row], best: float, peak: str) -> list[str]:
    flops, batch = rows[0]["flops"], rows[0]["batch_size"]
    torch = [r for r in rows if r["status"] == "ok" and r["contestant"].startswith("PyTorch")]
    compared = torch[0] if torch else None
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["contestant"], row["status"], *"—————"])
            continue
        # Only products in the ceiling's own dtype are bound by it.
        is_bound = peak == "bfloat16" or "bfloat16" not in row["contestant"]
        lines.append(
            [
                row["contestant"],
                number(batch / row["median_s"]),
                f"{number(batch / row['q3_s'])} to {number(batch / row['q1_s'])}",
                number(compared["median_s"] / row["median_s"]) if compared else "—",
                number(flops / row["median_s"] / 1e9),
                f"{flops / row['median_s'] / best:.0%}" if is_bound else "—",
                number(row["compile_s"], 2),
            ]
        )
    against = compared["contestant"] if compared else "PyTorch"
    head = [f"{rows[0]['model']}, batch {batch}", "images/s", "quartiles", f"times {against}"]
    head += ["GFLOP/s", "of ceiling", "set-up and compile, s"]
    bound = (
        f"A step is {flops / 1e9:.3g} GFLOP: at the ceiling {1e3 * flops / best:.3g} ms, "
        f"{number(batch * best / flops)} images/s."
    )
    return [table(head, lines), bound]


if __name__ == "__main__":
    main()
