"""Tables in Markdown and figures that can be read in grey."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edl_jax.runs.folder import RunFolder
from edl_jax.runs.storage import write_atomically

_MARKERS = "osD^vPX*hp<>"
_DASHES = ["--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)), (0, (5, 4))]
# Okabe and Ito (2008): told apart with any colour vision; markers and dashes tell them in grey.
_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#999933"]


class Panel(NamedTuple):
    """One set of axes, both logarithmic.

    Attributes:
      title: its title.
      x: label of the horizontal axis, with its unit.
      y: label of the vertical axis, with its unit.
      lines: by name, points `(x, y)` or `(x, y, low, high)`, the last two being quartiles. The
        first line is drawn strongest; names in brackets are references, drawn without markers.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, ...]]]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; all columns but those of text are set right."""
    numeric = [
        all(str(row[i]).strip()[:1] in "0123456789.-+—" for row in rows) for i in range(len(head))
    ]
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if is_number else "---" for is_number in numeric) + "|",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def number(value: float, digits: int = 3) -> str:
    """A number in a few digits, with thousands apart and no exponent below 10^15."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def write_report(
    folder: RunFolder, name: str, sections: Sequence[str], data: Mapping[str, Any]
) -> None:
    """Write and print `name.md`, and write `name.json`."""
    text = "\n\n".join(section.strip() for section in sections) + "\n"
    write_atomically(folder.path / f"{name}.md", text.encode())
    folder.write_json(f"{name}.json", json.loads(json.dumps(data)))
    print("\n" + text, flush=True)


def draw(folder: RunFolder, name: str, panels: Sequence[Panel], title: str) -> None:
    """Write `name.png`, or say what is missing for it."""
    if importlib.util.find_spec("matplotlib") is None:
        print('no plot: matplotlib is not installed; pip install "edl_jax[plots]"', flush=True)
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 5.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    handles = {}
    for axis, panel in zip(axes, panels, strict=True):
        for line, points in panel.lines.items():
            style = _style(names.index(line), line)
            x, y = [point[0] for point in points], [point[1] for point in points]
            (handles[line],) = axis.plot(x, y, label=line, **style)
            if points and len(points[0]) == 4:
                spread = [[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]]
                axis.errorbar(x, y, spread, fmt="none", ecolor=style["color"], capsize=2)
        axis.set(xscale="log", yscale="log", xlabel=panel.x, ylabel=panel.y, title=panel.title)
        ticks = sorted({p[0] for points in panel.lines.values() for p in points})
        if ticks:
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.tick_params(axis="x", labelrotation=45 if len(ticks) > 5 else 0)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(4, 2 * len(panels)),
        fontsize="small",
    )
    figure.savefig(folder.path / f"{name}.png", dpi=150)


def _style(index: int, name: str) -> dict[str, Any]:
    if name.startswith("("):
        return {"color": "0.45", "linestyle": ":", "linewidth": 1.5}
    if index == 0:
        return {"color": "black", "linestyle": "-", "linewidth": 2.5, "marker": _MARKERS[0]}
    return {
        "color": _COLORS[(index - 1) % len(_COLORS)],
        "linestyle": _DASHES[(index - 1) % len(_DASHES)],
        "linewidth": 1.3,
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5,
    }
