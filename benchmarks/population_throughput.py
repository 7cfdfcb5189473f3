"""How fast a population of loss networks is evaluated, beside others that do the same work.

Command:  python -m benchmarks.population_throughput [--quick]

Writes a table, its data and a plot to runs/population_throughput. A stopped run goes on where it
ended. Peers that are not installed are left out, with a line that says how to install them:

    pip install torch evotorch
"""

from collections.abc import Sequence

from benchmarks import ours
from benchmarks.grid import (
    Results,
    arguments_of,
    evaluation_of,
    fastest_peer,
    finish,
    full_table,
    run_grid,
)
from benchmarks.report import number, table

NAME = "population_throughput"
GOAL = 0.5  # of the measured ceiling


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write table and plot."""
    arguments = arguments_of(NAME, __doc__, argv)
    points = [(p, n) for p in arguments.populations for n in arguments.pairs]

    results = run_grid(NAME, arguments, points, lambda one, work: (evaluation_of(one, work), 1))
    lines, goals = _against_bound(results)
    sections = [
        "# Evaluation of a population",
        f"Pair evaluations/s: networks times pairs, scored in one second by {ours.NAME}, its share "
        f"of the measured bound (the goal is at least {GOAL:.0%}) and the fastest other.",
        table(
            [
                "population",
                "pairs",
                "edl_jax, M pair evaluations/s",
                "GFLOP/s",
                "of bound",
                "of own-shape bound",
                "fastest other",
                "its time / ours",
            ],
            lines,
        ),
        "All contestants:",
        full_table(results, "evaluations_per_second", "pair evaluations/s"),
    ]
    label = "pair evaluations/s"
    title = f"Evaluation of a population of {results.arguments.activation} networks"
    finish(NAME, results, sections, goals, ("evaluations_per_second", label, title))


def _against_bound(results: Results):
    lines, goals = [], []
    for point in results.points():
        rows = results.at(point)
        own, other = rows.get(ours.NAME, {"status": "not run"}), fastest_peer(rows)
        if own["status"] != "ok":
            continue
        share = results.bound(point) / own["median_s"]
        lines.append(
            [
                *point,
                number(own["evaluations_per_second"] / 1e6),
                number(own["flops_per_second"] / 1e9),
                f"{share:.0%}",
                f"{results.bound(point, 'network_flops') / own['median_s']:.0%}",
                other["contestant"] if other else "—",
                number(other["median_s"] / own["median_s"]) if other else "—",
            ]
        )
        goals.append(
            {
                "population": point[0],
                "pairs": point[1],
                "share_of_bound": share,
                "goal": GOAL,
                "reached": share >= GOAL,
            }
        )
    return lines, goals


if __name__ == "__main__":
    main()
