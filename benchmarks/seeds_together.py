"""Images per second of one network alone and of several seeds in one program.

Command:  python -m benchmarks.seeds_together [--quick]

ResNet-8 of width 16, batch 128, random images that live on the device: the best of three runs of so
many steps, after one that compiles and warms up. Prints a table.
"""

import argparse
import time
from collections.abc import Sequence

import jax

from benchmarks.training_work import QUICK, TrainWork
from edl_jax.losses.by_name import resolve_loss
from edl_jax.runs.devices import device_mesh
from edl_jax.training.programs import make_train
from edl_jax.training.steps import AXIS

COUNTS = (1, 5, 10)


def images_per_second(work: TrainWork, precision: str, num_seeds: int) -> tuple[float, float]:
    """Images of all networks in a second, and the seconds of the run that compiles."""
    config = work.config("edl", precision)
    several = num_seeds if num_seeds > 1 else None
    mesh = device_mesh(AXIS, None)
    functions = make_train(config, work.dataset, resolve_loss("edl"), mesh, num_seeds=several)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    keys = keys if several else keys[0]
    state, seconds = functions.init(keys), []
    for _ in range(4):
        begin = time.perf_counter()
        state = jax.block_until_ready(functions.advance(state, keys, functions.steps_per_epoch))
        seconds.append(time.perf_counter() - begin)
    images = num_seeds * functions.steps_per_epoch * config.batch_size
    return images / min(seconds[1:]), seconds[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--quick", action="store_true", help="a tiny network, to try the script")
    quick = options.parse_args(None if argv is None else list(argv)).quick
    work = QUICK if quick else TrainWork("resnet8", 128, width=16, num_batches=100)
    on_cpu = jax.default_backend() == "cpu"
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print(
        "| compute dtype | seeds in one program | images/s | first run, s |\n|---|---:|---:|---:|"
    )
    for precision in ("float32",) if on_cpu else ("bfloat16", "float32"):
        for count in COUNTS[: 2 if quick else 3]:
            speed, first = images_per_second(work, precision, count)
            print(f"| {precision} | {count} | {speed:,.0f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    main()
