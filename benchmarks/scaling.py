"""How the cost of a generation grows, with population, pairs, parameters and devices.

Command:  python -m benchmarks.scaling [--quick]

Writes tables, their data and a plot to runs/scaling; a stopped run goes on where it ended. On a CPU
each device count has its own process, with as many devices forced on the same cores, so that
strong scaling shows what dividing costs, not what it gains. Where there are several accelerators,
they are used. Ends with an estimate for a TPU v5e-256 slice: a model, not a measurement.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ours, scaling_model
from benchmarks.common import Run, Work, caption, open_folder, parser
from benchmarks.grid import evaluation_of
from benchmarks.report import Panel, draw, number, table, write_report
from benchmarks.timing import Limits, Row, Subject, measure
from edl_jax import PretrainConfig
from edl_jax.evolution.engine import make_evolution
from edl_jax.evolution.sharding import AXIS
from edl_jax.runs.devices import device_mesh, on_every_device, to_every_device
from edl_jax.runs.folder import RunFolder, read_json

NAME = "scaling"
DEVICES = (1, 2, 4, 8)


def sharded_chunk(
    config: PretrainConfig, length: int, num_devices: int
) -> tuple[Callable[..., Any], Any]:
    """A chunk of `length` generations over devices, and the state it begins from.

    The chunk is `(key, state, first) -> (state, log)`; the state is donated.
    """
    mesh = device_mesh(AXIS, jax.devices()[:num_devices])
    evolution = make_evolution(config, shards=mesh.size)

    def chunk(key: jax.Array, state: Any, first: jax.Array) -> Any:
        return jax.lax.scan(
            lambda state, index: evolution.generation(jax.random.fold_in(key, index), state),
            state,
            first + jnp.arange(length),
        )

    state = to_every_device(jax.device_get(jax.jit(evolution.init)(jax.random.key(0))), mesh)
    return on_every_device(chunk, mesh, donate_argnums=(1,)), state


def _prepare(work: Work, num_devices: int) -> Run:
    chunk, state = sharded_chunk(work.config(), ours.unit(work), num_devices)
    key, first = jax.random.key(1), 0

    def run(count: int) -> Any:
        nonlocal state, first
        log = {}
        for _ in range(count):
            state, log = chunk(key, state, jnp.int32(first))
            first += ours.unit(work)
        return jax.block_until_ready(log["best_fitness"])

    return run


def work_on(point: dict[str, Any], limits: Limits, activation: str) -> Row:
    """Measure one point in this process: a generation and, on one device, its evaluation."""
    hidden = tuple(point["hidden"])
    work = Work(point["population"], point["pairs"], hidden=hidden, activation=activation)
    subjects = [Subject("generation", lambda: _prepare(work, point["devices"]), ours.unit(work))]
    if point["devices"] == 1:
        subjects.append(Subject("evaluation", evaluation_of(ours.EDL_JAX, work)))
    return {**point, "parameters": work.num_parameters, **measure(subjects, limits)}


def points_of(quick: bool) -> Iterator[dict[str, Any]]:
    """Everything to measure: strong and weak scaling, and cost on one device."""
    population, pairs, devices = (16, 64, DEVICES[:2]) if quick else (1024, 4096, DEVICES)
    each = population // 2 if quick else 256
    for count in devices:
        yield _point(population, pairs, devices=count)
        yield _point(each * count, pairs, devices=count)
    populations = (8, 16) if quick else (64, 128, 256, 512, 1024, 2048, 4096)
    many = (32, 64) if quick else (256, 1024, 4096, 16384, 65536)
    widths = (8, 16) if quick else (4, 8, 16, 32, 64)
    yield from (_point(size, pairs) for size in populations)
    yield from (_point(each, count) for count in many)
    yield from (_point(each, pairs, (width, width)) for width in widths)
    # Off the cross of the lines above, or the model's terms could not be told apart.
    corners = [(16, 32)] if quick else [(64, 256), (2048, 256), (64, 16384)]
    yield from (_point(*corner) for corner in corners)


def _point(
    population: int, pairs: int, hidden: tuple[int, int] = (16, 16), devices: int = 1
) -> dict[str, Any]:
    return {"devices": devices, "population": population, "pairs": pairs, "hidden": list(hidden)}


def _is_at(row: Row, point: dict[str, Any]) -> bool:
    return all(row[name] == value for name, value in point.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Measure in processes of their own, and write tables and plot."""
    found = parser(NAME, __doc__)
    found.add_argument("--cell-seconds", type=float, default=10.0, help="longest repeat of a cell")
    found.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = found.parse_args(None if argv is None else list(argv))
    repeats = arguments.repeats or (2 if arguments.quick else 9)
    limits = Limits(repeats, arguments.cell_seconds, float("inf"))
    if arguments.worker:
        for point in arguments.worker:
            print(json.dumps(work_on(point, limits, arguments.activation)), flush=True)
        return
    config = {
        "quick": arguments.quick,
        "activation": arguments.activation,
        "repeats": repeats,
        "cell_seconds": arguments.cell_seconds,
    }
    folder = open_folder(NAME, arguments, config)
    points = list({json.dumps(p): p for p in points_of(arguments.quick)}.values())
    if jax.default_backend() != "cpu":
        points = [point for point in points if point["devices"] <= jax.device_count()]
    rows = folder.resume_rows()
    for devices in sorted({point["devices"] for point in points}):
        here = [point for point in points if point["devices"] == devices]
        left = [point for point in here if not any(_is_at(row, point) for row in rows)]
        before = f"{len(here) - len(left)} points finished before, {len(left)} to go"
        print(f"{NAME}: {devices} devices, {before}", flush=True)
        for row in _rows_of_worker(left, arguments, repeats) if left else ():
            folder.append_rows([row])
            rows.append(row)
    _report(folder, arguments, rows)


def _rows_of_worker(
    points: list[dict[str, Any]], arguments: argparse.Namespace, repeats: int
) -> Iterator[Row]:
    root = str(Path(__file__).parents[1])
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    if jax.default_backend() == "cpu":
        forced = f"--xla_force_host_platform_device_count={points[0]['devices']}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "benchmarks.scaling", "--worker", json.dumps(points)]
    command += ["--activation", arguments.activation, "--repeats", str(repeats)]
    command += ["--cell-seconds", str(arguments.cell_seconds)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"the process for {points[0]['devices']} devices failed; see above")


def _report(folder: RunFolder, arguments: argparse.Namespace, rows: list[Row]) -> None:
    population, pairs = (16, 64) if arguments.quick else (1024, 4096)
    each = population // 2 if arguments.quick else 256
    good = [row for row in rows if row["generation"]["status"] == "ok"]
    for row in rows:
        if row not in good:
            print(f"left out: {row}", flush=True)
    cores = read_json(folder.path / "environment.json")["cores"]
    # Forced devices share the cores; accelerators do not.
    model = scaling_model.fit(good, cores if jax.default_backend() == "cpu" else None)
    exponents = scaling_model.exponents(good, each, pairs)
    estimates = scaling_model.estimates(model, arguments.activation)
    usual = [r for r in good if r["hidden"] == [16, 16] and r["pairs"] == pairs]
    strong = [r for r in usual if r["population"] == population]
    weak = [r for r in usual if r["population"] == each * r["devices"]]
    sections = [
        "# Scaling",
        f"edl_jax, {arguments.activation} networks. On a CPU the devices are forced and share "
        f"{cores} cores: perfect division would leave the time of strong scaling as it is, and "
        "make that of weak scaling grow with the devices: the last column would be 1. Accelerators "
        "add up, and there it would be 1 / devices.",
        f"Strong scaling, {population} networks, {pairs} pairs:",
        _devices_table(strong, good),
        f"Weak scaling, {each} networks a device, {pairs} pairs:",
        _devices_table(weak, good),
        "Cost on one device, time ~ size^exponent (least squares of logarithms, standard error):",
        table(
            ["time of", "against", "range", "exponent", "standard error", "points"],
            [[*line[:3], f"{line[3]:.3f}", f"{line[4]:.3f}", line[5]] for line in exponents],
        ),
        scaling_model.describe(model),
        "## Estimate for a TPU v5e-256 slice (a model, not a measurement)",
        scaling_model.describe_estimate(model),
        table(scaling_model.ESTIMATE_HEAD, scaling_model.estimate_lines(estimates)),
        caption(folder),
    ]
    data = {
        "rows": rows,
        "model": dataclasses.asdict(model),
        "exponents": exponents,
        "estimates": estimates,
        "environment": read_json(folder.path / "environment.json"),
    }
    write_report(folder, NAME, sections, data)
    draw(folder, NAME, _panels(good, strong, weak, each, pairs), "Scaling of edl_jax")


def _devices_table(rows: list[Row], good: list[Row]) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: row["devices"]):
        alone = _alone(row, good)
        spread = f"{1e3 * row['generation']['q1_s']:.3g} to {1e3 * row['generation']['q3_s']:.3g}"
        seconds = row["generation"]["median_s"]
        lines.append(
            [
                row["devices"],
                row["population"],
                number(1e3 * seconds),
                spread,
                number(1 / seconds),
                "—" if alone is None else f"{seconds / alone:.2f}",
            ]
        )
    head = ["devices", "population", "generation, ms", "quartiles, ms", "generations/s"]
    return table([*head, "time / same work on one device"], lines)


def _alone(row: Row, good: list[Row]) -> float | None:
    """Seconds of the same generation on one device."""
    wanted = {name: row[name] for name in ("population", "pairs", "hidden")} | {"devices": 1}
    found = [other["generation"]["median_s"] for other in good if _is_at(other, wanted)]
    return found[0] if found else None


def _panels(
    good: list[Row], strong: list[Row], weak: list[Row], each: int, pairs: int
) -> list[Panel]:
    def line(rows: list[Row], x: str, of: str = "generation") -> list[tuple[float, ...]]:
        return [
            (row[x], 1e3 * row[of]["median_s"], 1e3 * row[of]["q1_s"], 1e3 * row[of]["q3_s"])
            for row in sorted(rows, key=lambda row: row[x])
            if row.get(of, {}).get("status") == "ok"
        ]

    label = "time, ms"
    panels = [
        Panel(
            f"Devices, {pairs} pairs",
            "devices",
            label,
            {
                "whole generation, strong": line(strong, "devices"),
                "whole generation, weak": line(weak, "devices"),
            },
        )
    ]
    for axis in ("population", "pairs", "parameters"):
        rows = scaling_model.along(good, axis, each, pairs)
        lines = {"whole generation": line(rows, axis), "evaluation": line(rows, axis, "evaluation")}
        panels.append(Panel(f"Cost against {axis}, one device", axis, label, lines))
    return panels


if __name__ == "__main__":
    main()
