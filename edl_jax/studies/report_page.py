"""The HTML of a report. Whatever comes from a run folder passes `escape` here."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edl_jax.runs.environment import versions

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 62rem;
  margin: 0 auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; }
section { border-top: 2px solid #888; margin-top: 2rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: normal; }
caption { text-align: left; font-weight: bold; padding: 0.3rem 0; }
th, td { border-bottom: 1px solid #bbb; padding: 0.25rem 0.6rem; text-align: left;
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
figcaption, .path, footer { color: #444; font-size: 0.9rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.2rem 1rem; }
dd { margin: 0; }
pre { white-space: pre-wrap; font-size: 0.8rem; background: #f4f4f4; padding: 0.5rem; }
@media print {
  body { max-width: none; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .table { overflow: visible; }
  table { font-size: 8pt; }
}
"""


class Section(NamedTuple):
    """A run's part of the page.

    Attributes:
      title: plain text.
      body: HTML.
      entries: what the table of contents lists below it, as anchors and plain text.
    """

    title: str
    body: str
    entries: Sequence[tuple[str, str]]


def escape(text: str) -> str:
    """Text as HTML, in attributes too."""
    return html.escape(text, quote=True)


def prose(text: str) -> str:
    """Text as HTML in which `code` is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def table(
    anchor: str, caption: str, is_number: Sequence[bool], lines: Sequence[Sequence[str]]
) -> str:
    """A table of lines of cells, the headings first; of each column whether it holds numbers."""

    def row(tag: str, cells: Sequence[str]) -> str:
        marks = [' class="number"' if right else "" for right in is_number]
        pairs = zip(marks, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in pairs) + "</tr>"

    heads, *rows = lines
    body = "\n".join(row("td", cells) for cells in rows)
    return (
        f'<div class="table" id="{anchor}"><table>\n<caption>{escape(caption)}</caption>\n'
        f"<thead>{row('th', heads)}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def figure(anchor: str, caption: str, source: str) -> str:
    """An image from a `data:` address."""
    return (
        f'<figure id="{anchor}"><img src="{source}" alt="{escape(caption)}">\n'
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )


def definitions(values: Mapping[str, Any]) -> str:
    """A list of names and JSON values, nested ones on one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {text(each)}" for key, each in value.items())
        if isinstance(value, list):
            return " ".join(map(text, value))
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    pairs = ((key.replace("_", " "), text(value)) for key, value in values.items())
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
    return f"<dl>{items}</dl>"


def whole(sections: Sequence[Section]) -> str:
    """The page."""
    contents, bodies = [], []
    for index, section in enumerate(sections, start=1):
        title = escape(section.title)
        below = "".join(f'<li><a href="#{a}">{escape(t)}</a></li>' for a, t in section.entries)
        contents.append(f'<li><a href="#run-{index}">{title}</a><ul>{below}</ul></li>')
        bodies.append(f'<section id="run-{index}">\n<h2>{title}</h2>\n{section.body}\n</section>')
    title = escape(sections[0].title) if len(sections) == 1 else f"Report on {len(sections)} runs"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<nav><h2>Contents</h2><ol>{"".join(contents)}</ol></nav>
{chr(10).join(bodies)}
<footer>Made by edl_jax {escape(versions()["edl_jax"])} from the run folders named above.</footer>
</body>
</html>
"""
