"""What a study leaves in its run folder: tables, figures, and a paragraph that reads them.

Each table is written as Markdown, CSV and JSON, each figure as SVG and PNG, and `study.json` says
which there are, for `edl report`; `README.md` shows them all.
"""

import csv
import dataclasses
import importlib.util
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edl_jax.errors import EDLError
from edl_jax.runs.folder import RunFolder, writing
from edl_jax.runs.tensorboard import add_results, config_text
from edl_jax.studies.figures import save

Row = Mapping[str, Any]
STUDY = "study.json"
ABSENT = "—"


class Column(NamedTuple):
    """A column of a table as people read it; CSV and JSON have the rows' values as they are.

    Attributes:
      heading: its heading, with the unit.
      text: a row's cell.
      is_number: whether it is set to the right.
    """

    heading: str
    text: Callable[[Row], str]
    is_number: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: of its files, without ending.
      title: one line.
      rows: values by name, the same names in every row; numbers (NumPy's too), strings, booleans
        or None.
      columns: what of them people read.
    """

    name: str
    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]

    def markdown(self) -> str:
        """The table as Markdown, without its title."""
        heads = [column.heading for column in self.columns]
        rule = ["---:" if column.is_number else "---" for column in self.columns]
        cells = [[column.text(row) for column in self.columns] for row in self.rows]
        escaped = [[_cell(text) for text in line] for line in [heads, rule, *cells]]
        return "".join(f"| {' | '.join(line)} |\n" for line in escaped)

    def csv(self) -> str:
        """All values of the rows, comma-separated; None and NaN are empty."""
        file = io.StringIO()
        names = list(self.rows[0]) if self.rows else []
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: "" if is_absent(v) else v for k, v in row.items()} for row in self.rows
        )
        return file.getvalue()

    def json(self) -> str:
        """All values of the rows; null for None, and for NaN and infinities, unknown to JSON."""
        rows = [{k: _json_value(v) for k, v in row.items()} for row in self.rows]
        return json.dumps(rows, indent=2) + "\n"


class Figure(NamedTuple):
    """A figure.

    Attributes:
      name: of its files, without ending.
      caption: what it shows, one or two sentences.
      drawn: a `matplotlib.figure.Figure`.
    """

    name: str
    caption: str
    drawn: Any


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """What a study found.

    Attributes:
      study: its command.
      title: one line.
      finding: a paragraph that says what the figures show, made from the numbers.
      protocol: sentences that say how it was done: data, splits, seeds, what was left out.
      tables: its tables, at least one, the most important first.
      figures: its figures likewise.
    """

    study: str
    title: str
    finding: str
    protocol: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure]

    def write(self, folder: RunFolder) -> None:
        """Write everything to a run folder; `study.json` last, so that it names only what is there.

        Raises:
          RunFolderError: if something cannot be written.
        """
        for table in self.tables:
            for ending, text in (
                ("md", table.markdown()),
                ("csv", table.csv()),
                ("json", table.json()),
            ):
                folder.write_text(f"{table.name}.{ending}", text)
        for figure in self.figures:
            for ending in ("svg", "png"):
                with writing(f"{figure.name}.{ending}", folder.path):
                    save(figure.drawn, folder.path / f"{figure.name}.{ending}")
        folder.write_text("README.md", self.markdown())
        index = {
            "study": self.study,
            "title": self.title,
            "finding": self.finding,
            "protocol": list(self.protocol),
            "tables": [{"name": table.name, "title": table.title} for table in self.tables],
            "figures": [
                {"name": figure.name, "caption": figure.caption} for figure in self.figures
            ],
        }
        add_results(
            folder.path,
            texts={"finding": self.finding, "config": config_text(folder.path)}
            | {f"tables/{table.name}": table.markdown() for table in self.tables},
            images={figure.name: folder.path / f"{figure.name}.png" for figure in self.figures},
        )
        folder.write_json(STUDY, index)

    def markdown(self) -> str:
        """All of it as one page."""
        first, *others = [f"**{table.title}**\n\n{table.markdown()}" for table in self.tables]
        figures = [
            f"![{figure.caption}]({figure.name}.svg)\n\n{figure.caption}" for figure in self.figures
        ]
        # The figures are seen before the longer tables.
        parts = [f"# {self.title}", self.finding, first, *figures, *others]
        parts += ["## Protocol", "\n".join(f"- {sentence}" for sentence in self.protocol)]
        return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def check_libraries(*others: str) -> None:
    """Refuse to begin a study whose end would fail.

    Args:
      *others: modules that it needs besides matplotlib and statsmodels.

    Raises:
      EDLError: if one of them is not installed.
    """
    for name in ("matplotlib", "statsmodels", *others):
        if importlib.util.find_spec(name) is None:
            raise EDLError(f'studies need {name}: pip install "edl_jax[studies]"')


def is_absent(value: Any) -> bool:
    """Whether a value is None or NaN: not measured, or not defined."""
    return value is None or value != value


def number(name: str, form: str = ".3g") -> Callable[[Row], str]:
    """A cell with one number in a format such as `.2f` or `+.2f`; a dash where there is none."""
    return lambda row: ABSENT if is_absent(row[name]) else format(row[name], form)


def mean_and_deviation(mean: str, deviation: str, form: str = ".2f") -> Callable[[Row], str]:
    """A cell with `mean ± standard deviation`, such as `57.72 ± 0.86`."""

    def text(row: Row) -> str:
        if is_absent(row[mean]):
            return ABSENT
        plain = form.lstrip("+")
        spread = "" if is_absent(row[deviation]) else f" ± {row[deviation]:{plain}}"
        return f"{row[mean]:{form}}{spread}"

    return text


def interval(low: str, high: str, form: str = "+.2f") -> Callable[[Row], str]:
    """A cell with an interval, such as `+0.12 to +1.31`."""

    def text(row: Row) -> str:
        if is_absent(row[low]) or is_absent(row[high]):
            return ABSENT
        return f"{row[low]:{form}} to {row[high]:{form}}"

    return text


def p_value(name: str) -> Callable[[Row], str]:
    """A cell with a p-value; below 0.001 it says so."""

    def text(row: Row) -> str:
        return ABSENT if is_absent(row[name]) else compared_p(row[name]).removeprefix("= ")

    return text


def span(values: Sequence[float], form: str) -> str:
    """`low to high` in a format, or one number where the two do not differ as written."""
    ends = (min(values) + 0.0, max(values) + 0.0)  # -0.0 as 0
    return " to ".join(dict.fromkeys(format(value, form) for value in ends))


def compared_p(p: float) -> str:
    """A p-value for a sentence, such as `= 0.012`; below 0.001 it says so."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _cell(text: str) -> str:
    """A cell's text on one line, and within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _json_value(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
