"""Whole generations per second, beside others that do the same work.

Command:  python -m benchmarks.generations [--quick]

A generation draws fresh pairs, scores every network on them, selects, and mutates. Writes a table,
its data and a plot to runs/generations. A stopped run goes on where it ended. Peers that are not
installed are left out, with a line that says how to install them:

    pip install torch evotorch
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import ours
from benchmarks.grid import Results, arguments_of, fastest_peer, finish, full_table, run_grid
from benchmarks.report import number, table

NAME = "generations"
GOAL = 5.0  # times the fastest other, at these points
GOAL_POINTS = ((256, 4096), (2048, 4096))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write table and plot."""
    arguments = arguments_of(NAME, __doc__, argv)
    points = {(p, n) for p in arguments.populations for n in arguments.pairs}
    if not arguments.quick:
        points |= set(GOAL_POINTS)
    results = run_grid(
        NAME,
        arguments,
        points,
        lambda one, work: (lambda: one.generations(work, 0), one.unit(work)),
    )
    lines, goals = _against_others(results)
    head = ["population", "pairs", "edl_jax, generations/s", "bound / our time", "fastest other"]
    head += ["its generations/s", "ours / fastest other", "most that the bound allows"]
    sections = [
        "# Whole generations",
        "Fresh pairs, features, scores, selection and mutation. The last column is the fastest "
        "other's time / the bound of the evaluation alone: how many times the fastest other a "
        "generation could be if all but the evaluation were free and that ran at the measured "
        "ceilings.",
        table(head, lines),
        *_verdicts(goals),
        "All contestants (EvoTorch's elitist algorithm scores as many parents as children; the "
        "others keep a quarter; SimpleGA keeps no elite unchanged). GFLOP/s count the matrix "
        "products of the evaluation alone:",
        full_table(results, "per_second", "generations/s"),
    ]
    title = f"Whole generations of {results.arguments.activation} networks"
    finish(NAME, results, sections, goals, ("per_second", "generations/s", title))


def _against_others(results: Results) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    lines, goals = [], []
    for point in results.points():
        rows = results.at(point)
        own, other = rows.get(ours.NAME, {"status": "not run"}), fastest_peer(rows)
        if own["status"] != "ok":
            continue
        bound = results.bound(point)
        line = [*point, number(own["per_second"]), f"{bound / own['median_s']:.0%}"]
        if other is None:
            lines.append([*line, *["—"] * 4])
            continue
        ratio, most = other["median_s"] / own["median_s"], other["median_s"] / bound
        name = other["contestant"]
        lines.append([*line, name, number(other["per_second"]), number(ratio), number(most)])
        if point in GOAL_POINTS:
            goals.append(
                {
                    "population": point[0],
                    "pairs": point[1],
                    "fastest_other": name,
                    "ratio": ratio,
                    "goal": GOAL,
                    "reached": ratio >= GOAL,
                    "most_by_bound": most,
                    "ratios": {
                        name: row["times_ours"]
                        for name, row in rows.items()
                        if row["status"] == "ok" and name != ours.NAME
                    },
                }
            )
    return lines, goals


def _verdicts(goals: list[dict[str, Any]]) -> list[str]:
    said = []
    for goal in goals:
        text = (
            f"Goal at population {goal['population']} and {goal['pairs']} pairs: {GOAL:g} times "
            f"the fastest other. Measured: {goal['ratio']:.2f} times {goal['fastest_other']}: "
        )
        if goal["reached"]:
            text += "reached."
        elif goal["most_by_bound"] < GOAL:
            text += (
                "not reached, and out of reach on this machine: at its measured ceilings the "
                f"evaluation alone leaves room for {goal['most_by_bound']:.2f} times."
            )
        else:
            text += f"not reached; the ceilings would allow {goal['most_by_bound']:.2f} times."
        others = sorted(goal["ratios"].items(), key=lambda item: item[1])
        text += " Ours / others: " + ", ".join(f"{name} {r:.2f}" for name, r in others) + "."
        said.append(text)
    return said


if __name__ == "__main__":
    main()
