"""What a study found, for a terminal: whole, or cut to one screen."""

import os
import textwrap
from pathlib import Path

from edl_jax.studies.results import StudyResults, Table


def on_screen(results: StudyResults, run_dir: Path, size: os.terminal_size | None) -> str:
    """The first table, the finding and, as far as there is room, the protocol.

    Args:
      results: what a study found.
      run_dir: its run folder.
      size: the terminal's columns and lines, to fit them; None for all of it, 100 columns wide.

    Returns:
      Lines, the last without its end.
    """
    width = size.columns if size else 100
    footer = [f"Tables, figures and protocol: {run_dir / 'README.md'}"]
    finding = textwrap.wrap(results.finding, width)
    protocol = ["Protocol:"]
    for sentence in results.protocol:
        protocol += textwrap.wrap(f"- {sentence}", width, subsequent_indent="  ")
    if size is None:
        whole = _table(results.tables[0], 10**6, 10**6)
        return "\n".join([*protocol, "", *whole, "", *finding, "", *footer])
    room = size.lines - len(footer) - 4  # the blank lines, and the prompt's
    table = _table(results.tables[0], width, max(room - len(finding), room // 2))
    room -= len(table)
    if len(finding) > room:  # its first and last sentences say most
        finding = [*finding[: room - 3], "[...]", *finding[-2:]]
    parts = [*table, "", *finding, ""]
    if len(finding) + len(protocol) < room:
        parts += [*protocol, ""]
    return "\n".join([*parts, *footer])


def _table(table: Table, width: int, lines: int) -> list[str]:
    """As many columns, from the left, and rows as fit."""
    shown, used = [], -2
    for column in table.columns:
        cells = [column.text(row) for row in table.rows]
        widest = max(map(len, [*cells, *column.heading.split()]))
        used += 2 + widest
        if used > width:
            break
        heads = textwrap.wrap(column.heading, widest)
        shown.append((heads, cells, widest, column.is_number))
    height = max(len(heads) for heads, *_ in shown)
    columns = [
        [
            text.rjust(widest) if is_number else text.ljust(widest)
            for text in [*[""] * (height - len(heads)), *heads, "-" * widest, *cells]
        ]
        for heads, cells, widest, is_number in shown
    ]
    found = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    if len(found) > lines:
        found[lines - 1 :] = [f"... and {len(found) - lines + 1} more rows"]
    return found
