"""The arguments that all benchmarks take, and the tables that they write."""

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Row, ratio_interval
from edl_jax.runs import environment

DASH = "—"


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


def table(
    title: str, rows: Sequence[Row], reference: str, rates: Mapping[str, float] | None = None
) -> str:
    """A Markdown table of what `measure` gave.

    Args:
      title: heads the column of names.
      rows: what was measured in turns.
      reference: the name of the row that all are compared with, by the ratio of their times.
      rates: further columns, such as images/s: by label, how much of that one item is.
    """
    rates = rates or {}
    head = [title, "median, ms", "quartiles, ms", *rates, f"time / {reference}", "95 % interval"]
    head.append("set-up and compile, s")
    base = next((row for row in rows if row["name"] == reference and row["status"] == "ok"), None)
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["name"], row["status"], *[DASH] * (len(head) - 2)])
            continue
        ratio, low, high = ratio_interval(row["seconds"], (base or row)["seconds"])
        lines.append(
            [
                row["name"],
                number(1e3 * row["median_s"]),
                f"{number(1e3 * row['q1_s'])} to {number(1e3 * row['q3_s'])}",
                *(number(amount / row["median_s"]) for amount in rates.values()),
                f"{ratio:.3f}" if base else DASH,
                f"{low:.3f} to {high:.3f}" if base and row is not base else DASH,
                number(row["compile_s"], 2),
            ]
        )
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)) + "\n"


def number(value: float, digits: int = 3) -> str:
    """A number in a few digits, with thousands apart and no exponent below 10^15."""
    if abs(value) >= 1000:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def write(out: Path, name: str, sections: Sequence[str], rows: Sequence[Row]) -> None:
    """Write and print `name.md`, and write `name.json`; both say what was measured with what."""
    found = described()
    versions = ", ".join(f"{library} {version}" for library, version in found["versions"].items())
    caption = (
        f"Measured on {found['backend']} ({found['device']}), {found['cores']} cores, load average "
        f"{found['load_average'][0]:.2f}, memory: {found['memory']}, commit {found['commit']}. "
        f"{versions}. Command: `{' '.join(found['command'])}`."
    )
    text = "\n\n".join(section.strip() for section in (*sections, caption)) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    data = {"rows": list(rows), "environment": found}
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"\n{text}\nwritten to {out}", flush=True)


def described() -> dict[str, Any]:
    """Versions, machine and commit."""
    found = environment.described()
    for library in ("torch", "evotorch"):
        found["versions"][library] = environment.version(library)
    return found | {
        "commit": commit(Path(__file__).parent),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "memory": os.environ.get("GLIBC_TUNABLES") or "as the C library gives it",
    }


def commit(folder: Path) -> str:
    """The commit of a checkout, which ends with `-dirty` where files differ from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
