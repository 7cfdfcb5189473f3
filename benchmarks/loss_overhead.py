"""What the evolved loss costs: a training step with it, and the loss alone, beside other losses.

Command:  python -m benchmarks.loss_overhead [--quick]

A step of ResNet-8 at batch 128 on a CPU, of ResNet-18 at batch 512 on a GPU, with the shipped loss
and with cross-entropy, in turns; cross-entropy takes part twice, to show what such a measurement
can tell apart. Then the mean loss and its gradient with respect to the logits. Writes tables and
their data to runs/loss_overhead.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from edl_jax.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":  # before JAX starts
    restart_with_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.report import Part, parser, run
from benchmarks.timing import Run, Subject
from benchmarks.training_work import our_training, steps_of_a_run, works
from edl_jax.losses.by_name import Loss, resolve_loss

NAME = "loss_overhead"
EVOLVED, CROSS_ENTROPY, AGAIN = "edl (evolved)", "cross-entropy", "cross-entropy again"
OTHERS = ("focal", "gce", "bi_tempered")
NO_LOSS = "no loss: the mean logit"
POINTS = ((128, 10), (4096, 10), (128, 1000), (128, 50_000))  # batch, classes
DTYPES = ("float32", "bfloat16")
GOAL = round(1 / 1.01, 3)  # a step with the evolved loss takes at most 1.01 times as long
NOTES = (
    "The losses alone are the mean loss of a batch and its gradient by the logits, one jitted call "
    "after the other, so that the time to make a call is part of it: the last row is a call that "
    "has next to nothing to do."
)


def losses_of(few: bool = False) -> dict[str, Loss]:
    """The losses that are timed alone; cross-entropy is optax's."""
    return {
        CROSS_ENTROPY: optax.losses.softmax_cross_entropy_with_integer_labels,
        EVOLVED: resolve_loss("edl"),
        **{name: resolve_loss(name) for name in (() if few else OTHERS)},
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


def parts_of(
    quick: bool, points: Sequence[tuple[int, int]] = POINTS, *, few: bool = False
) -> list[Part]:
    """A step, then losses alone, all or few, at points of batch size and number of classes."""
    work = works(quick)[0]
    named = {CROSS_ENTROPY: "cross_entropy", EVOLVED: "edl", AGAIN: "cross_entropy"}
    steps = steps_of_a_run()
    subjects = [Subject(n, our_training(work, steps, loss=x), steps) for n, x in named.items()]
    title = f"step of {work.model}, batch {work.batch_size}"
    parts = [Part(title, subjects, CROSS_ENTROPY, goal=GOAL)]
    alone_at = itertools.product(points, DTYPES) if not quick else [((8, 10), "float32")]
    for point, dtype in alone_at:
        named = losses_of(quick or few).items()
        losses = [Subject(name, partial(alone, loss, point, dtype)) for name, loss in named]
        title = f"{point[0]:,} examples, {point[1]:,} classes, {dtype}"
        parts.append(Part(title, losses, CROSS_ENTROPY))
    return parts


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    arguments = parser(NAME, __doc__, repeats=40).parse_args(argv)
    texts = ("# What the evolved loss costs", NOTES)
    run(NAME, parts_of(arguments.quick), texts, arguments, seconds=120)


if __name__ == "__main__":
    main()
