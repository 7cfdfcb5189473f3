"""Measure every contestant over populations and pairs, and put the results side by side."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import ceilings as ceiling, ours
from benchmarks.common import (
    Contestant,
    Run,
    Work,
    available,
    caption,
    open_folder,
    parser,
    random_layers,
)
from benchmarks.peers import PEERS, numpy_loop, torch_loops
from benchmarks.report import Panel, draw, number, table, write_report
from benchmarks.timing import Limits, Row, Subject, measure
from edl_jax.runs.folder import RunFolder, read_json

Point = tuple[int, int]  # population size, number of pairs
CEILINGS = "ceilings.jsonl"


class Results(NamedTuple):
    """Everything measured.

    Attributes:
      folder: where it is.
      rows: one for each point and contestant.
      ceilings: the machine's.
      arguments: the command's.
    """

    folder: RunFolder
    rows: list[Row]
    ceilings: dict[str, float]
    arguments: argparse.Namespace

    def at(self, point: Point) -> dict[str, Row]:
        """The rows of a point, by contestant."""
        return {r["contestant"]: r for r in self.rows if (r["population"], r["pairs"]) == point}

    def points(self) -> list[Point]:
        """The points, in order."""
        return sorted({(row["population"], row["pairs"]) for row in self.rows})

    def work(self, point: Point) -> Work:
        """The work at a point."""
        return Work(*point, activation=self.arguments.activation)

    def bound(self, point: Point, matrix: str = "matrix_flops") -> float:
        """Least seconds that the evaluation can take there."""
        return ceiling.bound_seconds(self.work(point), self.ceilings, matrix)


def arguments_of(name: str, description: str | None, argv: Iterable[str] | None) -> Any:
    """The parsed command line of a benchmark over the grid."""
    names = [contestant.name for contestant in (ours.EDL_JAX, *PEERS)]
    found = parser(name, description)
    found.add_argument("--populations", type=int, nargs="+", default=[64, 256, 1024, 4096])
    found.add_argument("--pairs", type=int, nargs="+", default=[1024, 4096, 16384])
    found.add_argument("--only", nargs="+", choices=names, help="these contestants alone")
    found.add_argument(
        "--cell-seconds", type=float, help="longest that one repeat may take; default 20"
    )
    found.add_argument(
        "--peer-memory", type=float, default=6.0, help="GiB that a contestant may need"
    )
    arguments = found.parse_args(None if argv is None else list(argv))
    if arguments.quick:
        arguments.populations, arguments.pairs = [16, 32], [128]
    arguments.repeats = arguments.repeats or (2 if arguments.quick else 15)
    arguments.cell_seconds = arguments.cell_seconds or (5.0 if arguments.quick else 20.0)
    return arguments


def run_grid(
    name: str,
    arguments: argparse.Namespace,
    points: Iterable[Point],
    prepare: Callable[[Contestant, Work], tuple[Callable[[], Run], int]],
) -> Results:
    """Measure what is not measured yet.

    Args:
      name: of the benchmark.
      arguments: its command line.
      points: what to measure.
      prepare: gives what starts a contestant, and the items that one of its runs gives.
    """
    config = {
        key: getattr(arguments, key)
        for key in ("quick", "activation", "repeats", "cell_seconds", "peer_memory", "only")
    }
    folder = open_folder(name, arguments, config)
    contestants = available((ours.EDL_JAX, *PEERS), arguments.only)
    print("measuring the machine's ceilings", flush=True)
    folder.append_rows(
        [ceiling.measure_ceilings(arguments.activation, quick=arguments.quick)], CEILINGS
    )
    limits = Limits(arguments.repeats, arguments.cell_seconds, arguments.peer_memory * 2**30)
    wanted = {contestant.name for contestant in contestants}
    rows = folder.read_rows()
    for point in sorted(points, key=lambda point: (point[0] * point[1], point)):
        found = [row for row in rows if (row["population"], row["pairs"]) == point]
        print(f"{name}: population {point[0]}, pairs {point[1]}", end="", flush=True)
        if wanted <= {row["contestant"] for row in found}:
            print(" finished before", flush=True)
            continue
        print(flush=True)
        # Ratios need one run: a point that lacks a contestant is measured again as a whole.
        work = Work(*point, activation=arguments.activation)
        subjects = []
        for contestant in contestants:
            start, unit = prepare(contestant, work)
            predicted = _predicted(rows, contestant.name, work, unit)
            peak = contestant.peak_bytes(work)
            subjects.append(Subject(contestant.name, start, unit, peak, predicted))
        rows = folder.resume_rows(lambda r, p=point: (r["population"], r["pairs"]) != p)
        new = _finished(measure(subjects, limits), point, work)
        folder.append_rows(new)
        rows += new
        # Or the next point's compile times would depend on which points came before.
        jax.clear_caches()
        torch_loops.forget_compiled()
    measured = ceiling.best_of(folder.read_rows(CEILINGS))
    return Results(folder, rows, measured, arguments)


def batch_of(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Features and severities of fresh pairs, for the evaluation alone."""
    return numpy_loop.observe(
        *numpy_loop.sample(np.random.default_rng(1), work.num_pairs, work.num_classes)
    )


def evaluation_of(contestant: Contestant, work: Work) -> Callable[[], Run]:
    """What starts a contestant's evaluation."""
    return lambda: contestant.evaluation(work, random_layers(work), *batch_of(work))


def _predicted(rows: list[Row], name: str, work: Work, unit: int) -> float | None:
    """Seconds of one run, in proportion to the next smaller point's."""
    sizes = [
        (row["population"] * row["pairs"], row["median_s"])
        for row in rows
        if row["contestant"] == name and row["status"] == "ok"
    ]
    smaller = [size for size in sizes if size[0] <= work.pair_evaluations]
    if not smaller:
        return None
    evaluations, seconds = max(smaller)
    return unit * seconds * work.pair_evaluations / evaluations


def _finished(measured: dict[str, Row], point: Point, work: Work) -> list[Row]:
    reference = measured.get(ours.NAME, {}).get("median_s")
    rows = []
    for name, row in measured.items():
        row = {"population": point[0], "pairs": point[1], "contestant": name, **row}
        if row["status"] == "ok":
            row["per_second"] = 1 / row["median_s"]
            row["evaluations_per_second"] = work.pair_evaluations / row["median_s"]
            row["flops_per_second"] = work.flops / row["median_s"]
            row["times_ours"] = row["median_s"] / reference if reference else None
        rows.append(row)
    return rows


def fastest_peer(rows: dict[str, Row]) -> Row | None:
    """The fastest but ours."""
    others = [r for name, r in rows.items() if name != ours.NAME and r["status"] == "ok"]
    return min(others, key=lambda row: row["median_s"], default=None)


def full_table(results: Results, rate: str, rate_name: str) -> str:
    """Every contestant at every point."""
    lines = []
    for point in results.points():
        for name, row in results.at(point).items():
            if row["status"] != "ok":
                lines.append([*point, name, row["status"], *["—"] * 6])
                continue
            spread = f"{number(1e3 * row['q1_s'])} to {number(1e3 * row['q3_s'])}"
            lines.append(
                [
                    *point,
                    name,
                    number(1e3 * row["median_s"]),
                    spread,
                    len(row["seconds"]),
                    number(row[rate]),
                    number(row["flops_per_second"] / 1e9),
                    "—" if row["times_ours"] is None else number(row["times_ours"]),
                    number(row["compile_s"], 2),
                ]
            )
    head = ["population", "pairs", "contestant", "median, ms", "quartiles, ms", "repeats"]
    head += [rate_name, "GFLOP/s", "time / ours", "set-up and compile, s"]
    return table(head, lines)


def finish(
    name: str,
    results: Results,
    sections: list[str],
    goals: list[dict[str, Any]],
    panels: tuple[str, str, str],
) -> None:
    """Write table, JSON and plot; `panels` are the rate's key, its label and the plot's title."""
    key, label, title = panels
    environment = read_json(results.folder.path / "environment.json")
    write_report(
        results.folder,
        name,
        [*sections, ceiling.describe(results.ceilings), caption(results.folder)],
        {
            "rows": results.rows,
            "ceilings": results.ceilings,
            "goals": goals,
            "environment": environment,
        },
    )
    drawn = []
    for pairs in sorted({point[1] for point in results.points()}):
        points = [point for point in results.points() if point[1] == pairs]
        lines: dict[str, list[tuple[float, ...]]] = {}
        for point in points:
            for contestant, row in results.at(point).items():
                if row["status"] == "ok":
                    scale = row[key] * row["median_s"]
                    low, high = scale / row["q3_s"], scale / row["q1_s"]
                    lines.setdefault(contestant, []).append((point[0], row[key], low, high))
        evaluations = key == "evaluations_per_second"
        lines["(bound of the evaluation)"] = [
            (p[0], (results.work(p).pair_evaluations if evaluations else 1) / results.bound(p))
            for p in points
        ]
        drawn.append(Panel(f"{pairs} pairs", "population (networks)", label, lines))
    draw(results.folder, name, drawn, title)
