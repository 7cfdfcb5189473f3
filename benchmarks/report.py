"""The arguments that all benchmarks take, how their parts are run, and the tables they write."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import torch_loops
from benchmarks.timing import Row, Subject, measure, ratio_interval
from edl_jax.runs import environment
from edl_jax.runs.storage import write_atomically

DASH = "—"


class Part(NamedTuple):
    """A table of a benchmark: `subjects` that take turns, all compared with the `reference`."""

    title: str
    subjects: Sequence[Subject]
    reference: str
    rates: Mapping[str, float] = {}  # further columns: by label, how much of that one item is
    goal: float | None = None  # how many times as fast as all others our fastest is to be
    needs: float = 0.0  # seconds; it is not begun with fewer left


def parser(name: str, description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser of the arguments that all benchmarks take."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--out", type=Path, default=Path("runs") / name, help="results folder")
    found.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    found.add_argument("--repeats", type=int, default=repeats, help="turns of each contestant")
    # Shared with PyTorch, so not all of a GPU's memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return found


def run(
    name: str,
    parts: Sequence[Part],
    texts: tuple[str, str],
    arguments: argparse.Namespace,
    *,
    seconds: float = 20.0,
    budget: float = math.inf,
) -> None:
    """Measure parts, the most valuable first; what is known is on the disk before each.

    `texts` are the heading and what is to be read below the tables. `seconds` are for all turns of
    a subject, `budget` is for everything: a part that does not fit is left out, and named.
    """
    end = time.monotonic() + budget
    found = {part.title: [DASH, DASH, "not begun"] for part in parts}
    tables, rows = list[str](), list[Row]()

    def save() -> str:
        head = ["part", "our fastest against the fastest other", "times as fast", "result"]
        summary = markdown(head, [[x.title, *found[x.title]] for x in parts])
        return write(arguments.out, name, (texts[0], summary, *tables, texts[1]), rows, found)

    for part in parts:
        if (left := max(0.0, end - time.monotonic())) <= part.needs:
            found[part.title][-1] = f"skipped: {left:.0f} s were left, it takes {part.needs:.0f}"
            continue
        found[part.title][-1] = "under way, or cut short"
        save()
        print(f"{name}: {part.title}", flush=True)
        repeats = 2 if arguments.quick else arguments.repeats
        measured = measure(part.subjects, repeats, seconds, end)
        torch_loops.forget()
        tables.append(table(part, measured))
        rows += [{"part": part.title, "amounts": dict(part.rates), **row} for row in measured]
        found[part.title] = _against_others(measured, part.goal)
    print(f"\n{save()}\nwritten to {arguments.out}", flush=True)


def _against_others(rows: Sequence[Row], goal: float | None) -> list[str]:
    """Who is compared, how many times as fast our fastest is as the fastest other, the result."""
    done = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["median_s"])
    ours = next((row for row in done if row["name"].startswith("edl")), None)
    other = next((row for row in done if not row["name"].startswith("edl")), None)
    missing = [row["name"] for row in rows if row["status"] != "ok"]
    result = f"not measured: {' and '.join(missing)}" if missing else "measured"
    if goal is None or ours is None or other is None:
        return [DASH, DASH, result]
    ratio, low, high = ratio_interval(other["seconds"], ours["seconds"])
    verdict = "met" if low >= goal else "not met" if high < goal else "undecided"
    speed = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    return [f"{ours['name']} against {other['name']}", speed, f"{result}; goal {goal:g}: {verdict}"]


def table(part: Part, rows: Sequence[Row]) -> str:
    """A Markdown table of what `measure` gave for the part's subjects."""
    rates, reference = part.rates, part.reference
    head = [part.title, "median, ms", "quartiles, ms", *rates, f"time / {reference}"]
    head += ["95 % interval", "verdict", "set-up and compile, s"]
    base = next((row for row in rows if row["name"] == reference and row["status"] == "ok"), None)
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["name"], row["status"], *[DASH] * (len(head) - 2)])
            continue
        ratio, low, high = ratio_interval(row["seconds"], (base or row)["seconds"])
        verdict = "faster" if high < 1 else "slower" if low > 1 else "no significant difference"
        against = [f"{low:.3f} to {high:.3f}", verdict] if base and row is not base else [DASH] * 2
        lines.append(
            [
                row["name"],
                number(1e3 * row["median_s"]),
                f"{number(1e3 * row['q1_s'])} to {number(1e3 * row['q3_s'])}",
                *(number(amount / row["median_s"]) for amount in rates.values()),
                f"{ratio:.3f}" if base else DASH,
                *against,
                number(row["compile_s"], 2),
            ]
        )
    return markdown(head, lines)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)) + "\n"


def number(value: float, digits: int = 3) -> str:
    """A number in a few digits, with thousands apart and no exponent below 10^15."""
    if abs(value) >= 1000:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def write(
    out: Path, name: str, sections: Sequence[str], rows: Sequence[Row], parts: Row | None = None
) -> str:
    """Write `name.md` and `name.json`, which say what was measured with what; the first's text."""
    found = described()
    versions = ", ".join(f"{library} {version}" for library, version in found["versions"].items())
    caption = (
        f"Measured on {found['backend']} ({found['device']}), {found['cores']} cores, load average "
        f"{found['load_average'][0]:.2f}, memory: {found['memory']}, commit {found['commit']}. "
        f"{versions}. Command: `{' '.join(found['command'])}`."
    )
    text = "\n\n".join(section.strip() for section in (*sections, caption)) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    data = {"parts": parts, "rows": list(rows), "environment": found}
    write_atomically(out / f"{name}.md", text.encode())
    write_atomically(out / f"{name}.json", (json.dumps(data, indent=1) + "\n").encode())
    return text


def described() -> dict[str, Any]:
    """Versions, machine and commit."""
    found = environment.described()
    for library in ("torch", "evotorch"):
        found["versions"][library] = environment.version(library)
    return found | {
        "commit": commit(Path(__file__).parent),
        "command": ["python", *sys.orig_argv[1:]],
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "memory": os.environ.get("GLIBC_TUNABLES") or "as the C library gives it",
    }


def commit(folder: Path) -> str:
    """The commit of a checkout, which ends with `-dirty` where files differ from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
