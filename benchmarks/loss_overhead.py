"""What the evolved loss costs: a training step with it, and the loss alone, beside other losses.

Command:  python -m benchmarks.loss_overhead [--quick]

A step of ResNet-8 at batch 128 on a CPU, of ResNet-18 at batch 512 on a GPU, with the shipped loss
and with cross-entropy, in turns; cross-entropy takes part twice, to show what such a measurement
can tell apart. Then the mean loss and its gradient with respect to the logits. Writes tables and
their data to runs/loss_overhead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from edl_jax.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":  # before JAX starts
    restart_with_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.report import parser, table, write
from benchmarks.timing import Row, Run, Subject, measure
from benchmarks.training_work import our_training, works
from edl_jax.losses.by_name import Loss, resolve_loss

NAME = "loss_overhead"
EVOLVED, CROSS_ENTROPY, AGAIN = "edl (evolved)", "cross-entropy", "cross-entropy again"
OTHERS = ("focal", "gce", "bi_tempered")
NO_LOSS = "no loss: the mean logit"
POINTS = ((128, 10), (4096, 10), (128, 1000), (128, 50_000))  # batch, classes
DTYPES = ("float32", "bfloat16")
STEPS = 4  # of one run


def losses_of(quick: bool = False) -> dict[str, Loss]:
    """The losses that are timed alone; cross-entropy is optax's."""
    return {
        CROSS_ENTROPY: optax.losses.softmax_cross_entropy_with_integer_labels,
        EVOLVED: resolve_loss("edl"),
        **{name: resolve_loss(name) for name in (() if quick else OTHERS)},
        NO_LOSS: lambda logits, labels: jnp.mean(logits, axis=-1),
    }


def alone(loss: Loss, point: tuple[int, int], dtype: str) -> Run:
    """Calls that give the mean of the losses of a batch and its gradient."""
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


def cells(quick: bool) -> dict[str, Callable[[], list[Subject]]]:
    """By title of its table, what makes the subjects that take turns."""
    work = works(quick)[0]

    def steps() -> list[Subject]:
        named = {CROSS_ENTROPY: "cross_entropy", EVOLVED: "edl", AGAIN: "cross_entropy"}
        return [
            Subject(n, our_training(work, STEPS, loss=loss), STEPS) for n, loss in named.items()
        ]

    def losses(point: tuple[int, int], dtype: str) -> list[Subject]:
        return [
            Subject(name, partial(alone, loss, point, dtype))
            for name, loss in losses_of(quick).items()
        ]

    return {f"step of {work.model}, batch {work.batch_size}": steps} | {
        f"{point[0]:,} examples, {point[1]:,} classes, {dtype}": partial(losses, point, dtype)
        for point in (((8, 10),) if quick else POINTS)
        for dtype in (DTYPES[:1] if quick else DTYPES)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    arguments = parser(NAME, __doc__, repeats=40).parse_args(argv)
    sections, rows = ["# What the evolved loss costs"], list[Row]()
    for title, subjects in cells(arguments.quick).items():
        print(f"{NAME}: {title}", flush=True)
        measured = measure(subjects(), 2 if arguments.quick else arguments.repeats, seconds=120)
        sections.append(table(title, measured, CROSS_ENTROPY))
        rows += [{"table": title, **row} for row in measured]
    sections.append(
        "In turns. First a whole training step; then the mean loss of a batch and its gradient by "
        "the logits, one jitted call after the other, so that the time to make a call is part of "
        "it: the last row is a call that has next to nothing to do."
    )
    write(arguments.out, NAME, sections, rows)


if __name__ == "__main__":
    main()
