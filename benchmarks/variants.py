"""What each way of evaluating a population bought: layouts, blocks, devices, kernels, activations.

Command:  python -m benchmarks.variants [--quick]

Times the networks alone (features in, the mean loss of each network out), all in one process, in
turns. On a CPU as many XLA devices are made as there are cores, for the variant that uses them;
all others run on the first. Writes a table and its data to runs/variants.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.cores import num_cores

if __name__ == "__main__":  # before JAX starts
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_cores()))

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from benchmarks import ceilings as ceiling, ours
from benchmarks.common import Run, Work, caption, open_folder, parser, random_layers
from benchmarks.grid import CEILINGS, batch_of
from benchmarks.report import number, table, write_report
from benchmarks.timing import Limits, Row, Subject, measure
from edl_jax.evolution.sharding import AXIS
from edl_jax.networks import ACTIVATIONS, LossNetwork, fused_from_features
from edl_jax.runs.devices import device_mesh
from edl_jax.runs.folder import read_json

NAME = "variants"
POINTS = ((256, 4096), (2048, 4096))
OURS = "16 networks at a time (edl_jax)"
# `(network, features) -> losses`, then mapped over the population.
Losses = Callable[[LossNetwork, jax.Array], jax.Array]


def examples_first(network: LossNetwork, features: jax.Array) -> jax.Array:
    """Examples as rows, features as columns."""
    x = features.T
    for index, (kernel, bias) in enumerate(network.weights()):
        if index:
            x = ACTIVATIONS[network.activation](x)
        x = x @ kernel + bias
    return jax.nn.softplus(x[:, 0])


def sums(network: LossNetwork, features: jax.Array) -> jax.Array:
    """Matrix products written as sums of scaled rows, which XLA may fuse with what is around."""
    x = features
    for index, (kernel, bias) in enumerate(network.weights()):
        if index:
            # Or each activation would be computed once for every unit of the next layer.
            x = jax.lax.optimization_barrier(ACTIVATIONS[network.activation](x))
        x = sum((kernel[i][:, None] * x[i] for i in range(len(kernel))), bias[:, None])
    return jax.nn.softplus(x[0])


def in_pair_blocks(network: LossNetwork, features: jax.Array, *, size: int) -> jax.Array:
    """A block of pairs at a time."""
    blocks = features.reshape(len(features), -1, min(size, features.shape[1])).swapaxes(0, 1)
    return jax.lax.map(network.from_features, blocks).reshape(-1)


def evaluation(
    work: Work, losses: Losses, *, networks: int | None = None, shards: int = 1
) -> Callable[[], Run]:
    """What starts an evaluation, all networks together unless `networks` at a time."""

    def prepare() -> Run:
        layers, (features, _) = random_layers(work), batch_of(work)
        graphdef = work.config().architecture().abstract()[0]

        def mean(features: jax.Array, solution: nnx.State) -> jax.Array:
            return jnp.mean(losses(nnx.merge(graphdef, solution), features))

        def evaluate(population: nnx.State, features: jax.Array) -> jax.Array:
            one = partial(mean, features)
            if networks is None:
                return jax.vmap(one)(population)
            return jax.lax.map(one, population, batch_size=networks)

        population, shared = ours.population_of(work, layers), jnp.asarray(features)
        if shards > 1:
            mesh, share = device_mesh(AXIS, jax.devices()[:shards]), PartitionSpec(AXIS)
            specs = {"in_specs": (share, PartitionSpec()), "out_specs": share}
            evaluate = jax.shard_map(evaluate, mesh=mesh, check_vma=False, **specs)
            population = jax.device_put(population, jax.NamedSharding(mesh, share))
            shared = jax.device_put(shared, jax.NamedSharding(mesh, PartitionSpec()))
        compiled = jax.jit(evaluate)

        def run(count: int) -> Any:
            for _ in range(count - 1):
                compiled(population, shared)
            return jax.block_until_ready(compiled(population, shared))

        return run

    return prepare


def subjects_of(work: Work) -> list[Subject]:
    """Every variant, ours first."""
    plain, devices = LossNetwork.from_features, jax.local_device_count()
    named: dict[str, Callable[[], Run]] = {
        OURS: evaluation(work, plain, networks=16),
        "all networks together, pairs first": evaluation(work, examples_first),
        "all networks together": evaluation(work, plain),
        "16 networks at a time, pairs first": evaluation(work, examples_first, networks=16),
        "4 networks at a time": evaluation(work, plain, networks=4),
        "16 networks, 512 pairs at a time": evaluation(
            work, partial(in_pair_blocks, size=512), networks=16
        ),
        "16 networks at a time, products as sums": evaluation(work, sums, networks=16),
    }
    if devices > 1:
        each = max(1, 16 // devices)
        named[f"{devices} devices, {each} networks at a time on each"] = evaluation(
            work, plain, networks=each, shards=devices
        )
    if jax.default_backend() != "cpu":
        named["fused Pallas kernel, all networks together"] = evaluation(work, fused_from_features)
    for name in sorted(set(ACTIVATIONS) - {work.activation}):
        other = Work(*_point(work), activation=name)
        named[f"16 networks at a time, {name}"] = evaluation(other, plain, networks=16)
    return list(itertools.starmap(Subject, named.items()))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    arguments = parser(NAME, __doc__).parse_args(None if argv is None else list(argv))
    repeats = arguments.repeats or (2 if arguments.quick else 15)
    config = {"quick": arguments.quick, "activation": arguments.activation, "repeats": repeats}
    folder = open_folder(NAME, arguments, config)
    rows: list[Row] = folder.resume_rows()
    found = ceiling.measure_ceilings(arguments.activation, quick=arguments.quick)
    folder.append_rows([found], CEILINGS)
    ceilings = ceiling.best_of(folder.read_rows(CEILINGS))
    points = ((32, 128),) if arguments.quick else POINTS
    for point in points:
        finished = any(_is_at(row, point) for row in rows)
        said = " finished before" if finished else ""
        print(f"{NAME}: population {point[0]}, pairs {point[1]}{said}", flush=True)
        if finished:
            continue
        work = Work(*point, activation=arguments.activation)
        measured = measure(subjects_of(work), Limits(repeats, 20.0, float("inf")))
        here = {"population": point[0], "pairs": point[1]}
        new = [{**here, "variant": name, **row} for name, row in measured.items()]
        folder.append_rows(new)
        rows += new
    sections = [
        "# Ways of evaluating a population",
        f"Networks of {arguments.activation} units where no other is named, pairs last where "
        "nothing else is said. Networks alone: neither pairs nor the objective.",
        *(
            _table(rows, ceilings, Work(*point, activation=arguments.activation))
            for point in points
        ),
        ceiling.describe(ceilings),
        caption(folder),
    ]
    data = {
        "rows": rows,
        "ceilings": ceilings,
        "environment": read_json(folder.path / "environment.json"),
    }
    write_report(folder, NAME, sections, data)


def _point(work: Work) -> tuple[int, int]:
    return work.population_size, work.num_pairs


def _is_at(row: Row, point: tuple[int, int]) -> bool:
    return (row["population"], row["pairs"]) == point


def _table(rows: list[Row], ceilings: dict[str, float], work: Work) -> str:
    here = {row["variant"]: row for row in rows if _is_at(row, _point(work))}
    bound = ceiling.bound_seconds(work, ceilings)
    own = here[OURS]["median_s"]
    lines = [
        [
            name,
            number(1e3 * row["median_s"]),
            f"{1e3 * row['q1_s']:.3g} to {1e3 * row['q3_s']:.3g}",
            f"{row['median_s'] / own:.2f}",
            # The ceilings are those of one activation.
            "—" if set(ACTIVATIONS) & set(name.split()) else f"{bound / row['median_s']:.0%}",
            number(row["compile_s"], 2),
        ]
        if row["status"] == "ok"
        else [name, row["status"], *"————"]
        for name, row in here.items()
    ]
    head = [f"{work.population_size} networks, {work.num_pairs} pairs", "median, ms"]
    head += ["quartiles, ms", "time / edl_jax's", "of bound", "set-up and compile, s"]
    return table(head, lines)


if __name__ == "__main__":
    main()
