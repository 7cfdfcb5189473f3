"""What a study found, for a terminal: whole, or cut to one screen."""

import os
import textwrap
from pathlib import Path

from edl_jax.studies.results import StudyResults, Table

_FEWEST_LINES = 20  # a terminal of fewer is taken to have so many


def on_screen(results: StudyResults, run_dir: Path, size: os.terminal_size | None) -> str:
    """The first table, the finding and, as far as there is room, the protocol.

    Args:
      results: what a study found.
      run_dir: its run folder.
      size: the terminal's columns and lines, to fit them; None for all tables and all of the text,
        100 columns wide but for the tables.

    Returns:
      Lines, the last without its end.
    """
    width = size.columns if size else 100
    footer = f"Tables, figures and protocol: {run_dir / 'README.md'}"
    finding = textwrap.wrap(results.finding, width)
    protocol = ["Protocol:"]
    for sentence in results.protocol:
        protocol += textwrap.wrap(f"- {sentence}", width, subsequent_indent="  ")
    if size is None:
        whole = [[f"{table.title}:", "", *_table(table)] for table in results.tables]
        return "\n\n".join("\n".join(part) for part in (protocol, *whole, finding, [footer]))
    room = max(size.lines, _FEWEST_LINES) - 5  # the footer, the blank lines, and the prompt's
    table = _table(results.tables[0], width, max(room - len(finding), room // 2))
    room -= len(table)
    if len(finding) > room:  # its first and last sentences say most
        finding = [*finding[: room - 3], "[...]", *finding[-2:]]
    parts = [*table, "", *finding, ""]
    if len(finding) + len(protocol) < room:
        parts += [*protocol, ""]
    return "\n".join([*parts, footer])


def _table(table: Table, width: int | None = None, lines: int | None = None) -> list[str]:
    """The table, or as many columns, from the left, and rows as fit."""
    shown: list[list[str]] = []
    for column in table.columns:
        cells = [column.text(row) for row in table.rows]
        if width and not shown:  # long names leave room for numbers
            cells = [x if len(x) <= width // 2 else f"...{x[3 - width // 2 :]}" for x in cells]
        widest = max(map(len, [*cells, *column.heading.split()]))
        heads = textwrap.wrap(column.heading, widest)
        text = [*heads, "-" * widest, *cells]
        shown.append([x.rjust(widest) if column.is_number else x.ljust(widest) for x in text])
        if width and sum(len(x[0]) + 2 for x in shown) - 2 > width:
            shown.pop()
            break
    height = max(map(len, shown))
    columns = [[" " * len(x[0])] * (height - len(x)) + x for x in shown]
    found = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    if lines and len(found) > lines:
        hidden = min(len(found) - lines + 1, len(table.rows))
        found[-hidden:] = [f"... and {hidden} more rows"]
    return found
