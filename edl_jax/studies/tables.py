"""Tables of a study, pandas frames: summaries, contrasts with a verdict, and the page of a run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from edl_jax.runs.folder import RunFolder
from edl_jax.studies.figures import write_page
from edl_jax.studies.statistics import compare_paired, holm, verdict

Frame = Any  # a pandas.DataFrame, whose stubs refuse half of what it can do
Versus = Sequence[tuple[Any, Any]]  # values of a column, each with the one it is compared to


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
        """This, with `table.csv`, the figures and a `README.md` that shows all in a folder."""
        if folder is None:
            return self
        parts = [f"**{title}**\n\n{markdown(table)}" for title, table in self.tables.items()]
        if self.failed:
            heading = f"**{len(self.failed)} of {len(self.cells)} cells failed:**"
            parts.insert(0, "\n- ".join([f"{heading}\n", *map(_cell, self.failed)]))
        folder.write_text("table.csv", self.table.to_csv(index=False))
        write_page(folder.path, self.title, parts, self.figures, self.notes)
        return self


def frame(rows: Sequence[Mapping[str, Any]], by: Sequence[str] = ()) -> Frame:
    """Rows that did not fail, accuracies in percent; what is no number in columns `by` is text."""
    import pandas as pd

    cells = pd.DataFrame([row for row in rows if "error" not in row])
    for name in by:  # lists, and None, would make no groups
        cells[name] = [x if isinstance(x, int | float) else str(x).strip("[]") for x in cells[name]]
    for name in cells.columns.intersection(["accuracy", "calibration_error"]):
        cells[name] = 100 * cells[name].astype(float)
    return cells


def summary(cells: Frame, by: Sequence[str], measures: Sequence[str]) -> Frame:
    """`n`, and `MEASURE_mean` and `MEASURE_std` of what is defined, for each setting of `by`."""
    rows = []
    for setting, group in _groups(cells, by):
        stats = group[list(measures)].astype(float).agg(["mean", "std"])
        row = {f"{name}_{what}": stats.loc[what, name] for name in measures for what in stats.index}
        rows.append({**setting, "n": len(group), **row})
    return frame(rows)


def contrast(cells: Frame, by: Sequence[str], wanted: Sequence[tuple[str, str, Versus]]) -> Frame:
    """Differences paired by seed, with a verdict each; p is corrected for all tests of the table.

    `wanted`: measures, columns of `by` and pairs of their values, in each setting of the others.
    """
    rows, tests = [], []
    for measure, axis, pairs in wanted:
        for setting, group in _groups(cells, [name for name in by if name != axis]):
            sides = group.pivot(index="seed", columns=axis, values=measure).astype(float)
            for value, baseline in pairs:
                if value not in sides or baseline not in sides:
                    continue
                test = compare_paired(*sides[[value, baseline]].dropna().to_numpy().T)
                n, mean, std, low, high = test.difference
                row = {"measure": measure, **setting, "axis": axis.rpartition(".")[2]}
                row |= {"value": value, "baseline": baseline, "n": n, "difference_mean": mean}
                rows.append(row | {"difference_std": std, "low": low, "high": high})
                tests.append(test)
    for row, test, p in zip(rows, tests, holm([test.p for test in tests]), strict=True):
        row |= {"p": p, "verdict": verdict(test.difference.mean, p, test.detectable)}
    return frame(rows)


def readable(table: Frame) -> Frame:
    """A table as people read it: means with deviations, intervals, short names, nothing empty."""
    import pandas as pd

    columns: dict[str, list[str]] = {}
    for name in table.columns:
        column = table[name]
        if name == "high" or name.endswith("_std") or column.isna().all():
            continue
        heading = name if " " in name else name.rpartition(".")[2].replace("_", " ")
        shown = list(map(_text, column))
        if name.endswith("_mean"):
            heading = f"{name[:-5].replace('_', ' ')} (mean ± std)"
            spreads = table[f"{name[:-5]}_std"]
            shown = [_rounded("{} ± {}", b, a, b) for a, b in zip(column, spreads, strict=True)]
        elif name == "low":
            heading, ends = "95 % interval", zip(column, table["high"], strict=True)
            shown = [_rounded("{} to {}", high - low, low, high) for low, high in ends]
        elif name == "p":
            shown = ["< 0.001" if x < 0.001 else _text(round(x, 3)) for x in column]
        columns[heading] = shown
    return pd.DataFrame(columns)


def markdown(table: Frame) -> str:
    """A table as Markdown, with `readable` columns."""
    shown = readable(table)
    lines = [list(shown), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def other_settings(config: Any, but: Sequence[str] = ()) -> str:
    """A sentence that names every field that is not the default, `outer.inner`, except some."""
    values = flatten_dict(dataclasses.asdict(config), sep=".")
    default = flatten_dict(dataclasses.asdict(type(config)()), sep=".")
    changed = {name: x for name, x in values.items() if x != default.get(name) and name not in but}
    if not changed:
        return "All other settings are the defaults."
    listed = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return f"Settings that are not the defaults: {listed}."


def _groups(cells: Frame, by: Sequence[str]) -> list[tuple[dict[str, Any], Any]]:
    if not by:
        return [({}, cells)]
    groups = cells.groupby(list(by), sort=False, dropna=False)
    return [(dict(zip(by, values, strict=True)), group) for values, group in groups]


def _text(value: object) -> str:
    if value is None or value != value:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)  # as NumPy's float64 is


def _rounded(form: str, width: float, *numbers: float) -> str:
    """Numbers to two digits of a width, as in `77.81 ± 0.21`; where there is none, the first."""
    if math.isnan(width):
        return _text(numbers[0])
    digits = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 2
    return form.format(*(f"{x:.{digits}f}" for x in numbers))


def _cell(text: str) -> str:
    """Text on one line, within its cell."""
    return " ".join(text.split()).replace("|", "\\|")
