"""Tables of a study, pandas frames: summaries, contrasts with a verdict, and the page of a run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.runs.folder import RunFolder
from edl_jax.studies.figures import write_page
from edl_jax.studies.statistics import compare_paired, holm, verdict

Frame = Any  # a pandas.DataFrame, whose stubs refuse half of what it can do
ABSENT = "—"
Contrasts = Mapping[str, Sequence[tuple[Any, Any]]]  # by column: (a value, what it is compared to)


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
      title: one line.
      notes: sentences that say how it was done: data, seeds, settings.
      tables: pandas frames by title, the most important first.
      figures: by file name, without ending, the caption and a `matplotlib.figure.Figure`.
      cells: rows of the sweep, as in `cells.jsonl`.
    """

    title: str
    notes: Sequence[str]
    tables: Mapping[str, Frame]
    figures: Mapping[str, tuple[str, Any]]
    cells: Sequence[Mapping[str, Any]] = ()

    @property
    def table(self) -> Frame:
        """The first table."""
        return next(iter(self.tables.values()))

    @property
    def failed(self) -> list[str]:
        """What cells failed with."""
        return [f"{row['key']}: {row['error']}" for row in self.cells if "error" in row]

    def written(self, folder: RunFolder | None) -> "Study":
        """This, with `table.csv`, the figures and `README.md`, which shows all of it, in a folder.

        Raises:
          RunFolderError: if something cannot be written.
        """
        if folder is None:
            return self
        parts = [f"**{title}**\n\n{markdown(table)}" for title, table in self.tables.items()]
        if self.failed:
            listed = "\n".join(f"- {_cell(line)}" for line in self.failed)
            parts.insert(
                0, f"**{len(self.failed)} of {len(self.cells)} cells failed:**\n\n{listed}"
            )
        folder.write_text("table.csv", self.table.to_csv(index=False))
        write_page(folder.path, self.title, parts, self.figures, self.notes)
        return self


def frame(rows: Sequence[Mapping[str, Any]], by: Sequence[str] = ()) -> Frame:
    """Rows of a sweep as a table, without those that failed.

    Args:
      rows: from `sweep`.
      by: the columns that tell settings apart: what is no number or text becomes text in them.
    """
    import pandas as pd

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return value if isinstance(value, int | float | str) else str(value)

    sound = [row for row in rows if "error" not in row]
    return pd.DataFrame([{**row, **{name: named(row[name]) for name in by}} for row in sound])


def summary(cells: Frame, by: Sequence[str], measures: Sequence[str]) -> Frame:
    """Mean and standard deviation of measures over the seeds, `MEASURE_mean` and `MEASURE_std`.

    Args:
      cells: from `frame`.
      by: the columns that tell settings apart, each of which becomes a row, in their order.
      measures: the columns to summarise; values that are not defined are left out.
    """
    import pandas as pd

    rows = []
    for values, group in _groups(cells, by):
        row = {**values, "n": len(group)}
        for name in measures:
            defined = group[name].astype(float).dropna()
            row |= {f"{name}_mean": defined.mean(), f"{name}_std": defined.std()}
        rows.append(row)
    return pd.DataFrame(rows)


def contrast(cells: Frame, by: Sequence[str], asked: Mapping[str, Contrasts]) -> Frame:
    """Differences paired by seed, with a verdict each; p is corrected for all tests of the table.

    Args:
      cells: from `frame`.
      by: the columns that tell settings apart.
      asked: by measure, a column, and then by one of `by`, pairs of its values: which is compared
        with which, in every setting of the other columns in which both are.

    Returns:
      A row for each measure, pair and setting: `measure`, the other columns, `axis`, `value`,
      `baseline`, `n`, `difference_mean`, `difference_std`, `low` and `high` (ends of the 95 %
      interval), `p` and `verdict`.
    """
    import pandas as pd

    rows, tests = [], []
    for measure, contrasts in asked.items():
        for axis, pairs in contrasts.items():
            for setting, group in _groups(cells, [name for name in by if name != axis]):
                sides = {x: mine.set_index("seed")[measure] for x, mine in group.groupby(axis)}
                for value, baseline in pairs:
                    if value not in sides or baseline not in sides:
                        continue
                    both = pd.concat([sides[value], sides[baseline]], axis=1, join="inner")
                    test = compare_paired(*both.astype(float).dropna().to_numpy().T)
                    tests.append(test)
                    n, mean, std, low, high = test.difference
                    row = {"measure": measure, **setting, "axis": axis.rpartition(".")[2]}
                    row |= {"value": value, "baseline": baseline, "n": n}
                    row |= {"difference_mean": mean, "difference_std": std}
                    rows.append({**row, "low": low, "high": high})
    p_values = holm([test.p for test in tests])
    for row, test, p in zip(rows, tests, p_values, strict=True):
        row |= {"p": p, "verdict": verdict(test.difference.mean, p, test.detectable)}
    return pd.DataFrame(rows)


def readable(table: Frame) -> Frame:
    """A table as people read it, all text.

    `X_mean` and `X_std` become `X (mean ± std)`, `low` and `high` an interval, dotted names their
    last part; a column without a single value is left out.
    """
    import pandas as pd

    found: dict[str, list[str]] = {}
    for name in table.columns:
        column = table[name]
        if name == "high" or name.endswith("_std") or (len(column) and column.isna().all()):
            continue
        heading, shown = name.rpartition(".")[2].replace("_", " "), list(map(_text, column))
        if name.endswith("_mean"):
            spreads = table[f"{name[:-5]}_std"]
            shown = [_with_std(a, b) for a, b in zip(column, spreads, strict=True)]
            heading = f"{name[:-5].replace('_', ' ')} (mean ± std)"
        elif name == "low":
            shown = [_interval(a, b) for a, b in zip(column, table["high"], strict=True)]
            heading = "95 % interval"
        elif name == "p":
            shown = ["< 0.001" if x < 0.001 else _text(round(x, 3)) for x in column]
        found[heading] = shown
    return pd.DataFrame(found)


def markdown(table: Frame) -> str:
    """A table as Markdown, with `readable` columns; numbers are set to the right."""
    shown = readable(table)
    lines = [list(shown.columns), *shown.to_numpy().tolist()]
    is_number = [all(x[:1] in "+-−—<0123456789" for x in shown[name]) for name in shown.columns]
    lines.insert(1, ["---:" if right else "---" for right in is_number])
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def other_settings(config: Any, but: Sequence[str] = ()) -> str:
    """A sentence that names every field that is not the default, `outer.inner`, except some."""
    found = {name: value for name, value in _changed(config, "").items() if name not in but}
    if not found:
        return "All other settings are the defaults."
    listed = ", ".join(f"{name}={value!r}" for name, value in found.items())
    return f"Settings that are not the defaults: {listed}."


def _changed(config: Any, prefix: str) -> dict[str, Any]:
    found, default = {}, type(config)()
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= _changed(value, f"{name}.")
        elif value != getattr(default, field.name):
            found[name] = value
    return found


def _groups(cells: Frame, by: Sequence[str]) -> list[tuple[dict[str, Any], Any]]:
    if not by:
        return [({}, cells)]
    groups = cells.groupby(list(by), sort=False, dropna=False)
    return [(dict(zip(by, values, strict=True)), group) for values, group in groups]


def _text(value: Any) -> str:
    if value is None or value != value:
        return ABSENT
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _with_std(mean: float, std: float) -> str:
    """`77.81 ± 0.21`: to two digits of the deviation."""
    if mean != mean or std != std:
        return _text(mean)
    return f"{mean:.{_digits(std)}f} ± {std:.{_digits(std)}f}"


def _interval(low: float, high: float) -> str:
    if low != low or high != high:
        return ABSENT
    digits = _digits(high - low)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _digits(width: float) -> int:
    """Decimals that show two digits of a width."""
    return max(0, 1 - math.floor(math.log10(width))) if width > 0 else 2


def _cell(text: str) -> str:
    """Text on one line, within its cell."""
    return " ".join(text.split()).replace("|", "\\|")
