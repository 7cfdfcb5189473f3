"""What the evolved loss costs: a training step with it, and the loss alone, beside other losses.

Command:  python -m benchmarks.loss_overhead [--quick]

A step of ResNet-8 at batch 128 on a CPU, of ResNet-18 at batch 512 on a GPU, with the shipped loss
and with cross-entropy, in turns; cross-entropy takes part twice, to show what such a measurement
can tell apart. Then the mean loss and its gradient with respect to the logits. Writes tables and
their data to runs/loss_overhead. A stopped run goes on where it ended.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from edl_jax.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":  # before JAX starts
    restart_with_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import training_work
from benchmarks.common import Run, caption, open_folder, parser
from benchmarks.report import number, table, write_report
from benchmarks.timing import Limits, Row, Subject, measure
from benchmarks.training_work import TrainWork, functions_of, our_run
from edl_jax.losses.by_name import Loss, resolve_loss
from edl_jax.runs.folder import RunFolder, read_json

NAME = "loss_overhead"
EVOLVED, CROSS_ENTROPY, AGAIN = "edl (evolved)", "optax cross-entropy", "cross-entropy again"
BASELINES = ("focal", "gce", "bi_tempered")
NO_LOSS = "no loss: the mean logit"
POINTS = ((128, 10), (4096, 10), (128, 1000), (128, 50_000))  # batch, classes
DTYPES = ("float32", "bfloat16")
STEPS = 4  # of one run


def steps_of(work: TrainWork) -> list[Subject]:
    """Training steps with the evolved loss and with cross-entropy, twice."""

    @functools.cache
    def run_of(loss: str) -> Run:
        return our_run(functions_of(work, work.config(loss)), STEPS)

    names = {CROSS_ENTROPY: "cross_entropy", EVOLVED: "edl", AGAIN: "cross_entropy"}
    return [Subject(name, functools.partial(run_of, loss), STEPS) for name, loss in names.items()]


def losses_of(quick: bool = False) -> dict[str, Loss]:
    """The losses that are timed alone, cross-entropy first."""
    return {
        CROSS_ENTROPY: optax.losses.softmax_cross_entropy_with_integer_labels,
        EVOLVED: resolve_loss("edl"),
        **{name: resolve_loss(name) for name in (() if quick else BASELINES)},
        NO_LOSS: lambda logits, labels: jnp.mean(logits, axis=-1),
    }


def alone(loss: Loss, point: tuple[int, int], dtype: str) -> Callable[[], Run]:
    """What starts calls that give the mean of the losses of a batch and its gradient."""

    def prepare() -> Run:
        rng = np.random.default_rng(0)
        logits = jnp.asarray(3 * rng.standard_normal(point), dtype)
        labels = jnp.asarray(rng.integers(0, point[1], point[0]), jnp.int32)
        compiled = jax.jit(
            jax.value_and_grad(lambda logits: loss(logits, labels).astype(jnp.float32).mean())
        )

        def run(count: int) -> Any:
            found = None
            for _ in range(count):  # one after the other, as in a training
                found = jax.block_until_ready(compiled(logits))
            return found

        return run

    return prepare


def ratio_interval(
    above: Sequence[float], below: Sequence[float], *, resamples: int = 4000
) -> tuple[float, float, float]:
    """Ratio of the medians of two that took turns, and its 95 % interval by bootstrap.

    Turns are drawn anew as a whole, so that what slows both down for a while is not taken for a
    difference.

    Args:
      above: seconds of one, by turn.
      below: seconds of the other, by turn.
      resamples: how often turns are drawn anew.

    Returns:
      The ratio, and the 2.5 % and 97.5 % quantiles of the ratios of turns drawn anew.
    """
    turns = min(len(above), len(below))
    pair = np.asarray([above[:turns], below[:turns]])
    drawn = np.random.default_rng(0).integers(turns, size=(resamples, turns))
    ratios = np.divide(*np.median(pair[:, drawn], axis=2))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.divide(*np.median(pair, axis=1))), float(low), float(high)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    arguments = parser(NAME, __doc__, activation=False).parse_args(
        None if argv is None else list(argv)
    )
    quick = arguments.quick
    repeats = arguments.repeats or (2 if quick else 40)
    folder = open_folder(NAME, arguments, {"quick": quick, "repeats": repeats})
    on_cpu = jax.default_backend() == "cpu"
    full = TrainWork("resnet8", 128) if on_cpu else TrainWork("resnet18", 512)
    work = training_work.QUICK if quick else full
    step = f"step of {work.model}, batch {work.batch_size}"
    limits = Limits(repeats, 120.0, float("inf"))
    rows = _measured(folder, step, functools.partial(steps_of, work), limits)
    tables = [_table(step, rows)]
    for point in ((8, 10),) if quick else POINTS:
        for dtype in DTYPES[: 1 if quick else 2]:
            title = f"{point[0]} examples, {point[1]:,} classes, {dtype}"

            def subjects(point=point, dtype=dtype) -> list[Subject]:
                named = losses_of(quick).items()
                return [Subject(name, alone(loss, point, dtype)) for name, loss in named]

            new = _measured(folder, title, subjects, limits)
            tables.append(_table(title, new))
            rows += new
    sections = [
        "# What the evolved loss costs",
        "In turns, medians and quartiles; the ratio of the medians with its 95 % interval by "
        f"bootstrap over turns. First a whole training step, in {STEPS}s; then the mean loss of a "
        "batch and its gradient by the logits, one jitted call after the other, so that the time "
        "to make a call is part of it: the last row is a call that has next to nothing to do.",
        *tables,
        caption(folder),
    ]
    environment = read_json(folder.path / "environment.json")
    write_report(folder, NAME, sections, {"rows": rows, "environment": environment})


def _measured(
    folder: RunFolder, title: str, subjects: Callable[[], list[Subject]], limits: Limits
) -> list[Row]:
    """The rows of a table, measured unless the folder has them."""
    found = [row for row in folder.resume_rows() if row["table"] == title]
    print(f"{NAME}: {title}{' finished before' * bool(found)}", flush=True)
    if not found:
        measured = measure(subjects(), limits)
        found = [{"table": title, "loss": name, **row} for name, row in measured.items()]
        base = measured[CROSS_ENTROPY]
        for row in found:
            if row["status"] == base["status"] == "ok" and row["loss"] != CROSS_ENTROPY:
                names = ("ratio", "ratio_low", "ratio_high")
                interval = ratio_interval(row["seconds"], base["seconds"])
                row.update(zip(names, interval, strict=True))
        folder.append_rows(found)
        jax.clear_caches()
    return found


def _table(title: str, rows: list[Row]) -> str:
    lines = [
        [
            row["loss"],
            number(1e3 * row["median_s"]),
            f"{1e3 * row['q1_s']:.3g} to {1e3 * row['q3_s']:.3g}",
            f"{row['ratio']:.3f}" if "ratio" in row else "—",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}" if "ratio" in row else "—",
        ]
        if row["status"] == "ok"
        else [row["loss"], row["status"], *"———"]
        for row in rows
    ]
    return table([title, "ms", "quartiles, ms", f"times {CROSS_ENTROPY}", "95 % interval"], lines)


if __name__ == "__main__":
    main()
