"""Run folders' own pages gathered into one HTML page that needs nothing else.

A run folder may be another's: no markup is kept, figures are images, nothing outside it is read.
"""

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from edl_jax.checked import check
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.folder import writing
from edl_jax.runs.storage import check_regular, user_path, write_atomically
from edl_jax.studies.figures import PAGE, check_libraries

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Report</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: auto; padding: 0 1rem; }
section { border-top: 2px solid #888; overflow-x: auto; }
th, td { border-bottom: 1px solid #bbb; padding: 0.25rem 0.6rem; }
img { max-width: 100%; }
</style></head><body>"""


def write_report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write one HTML page about run folders, each with the README.md of a finished command."""
    runs = check("runs", runs, tuple[str, ...])
    if not runs:
        raise ConfigError("runs is empty; expected one or more run folders.")
    check_libraries("markdown_it")
    out, folders = user_path(out), [user_path(run) for run in runs]
    entries, sections = [], []
    for index, folder in enumerate(folders):
        entries.append(f'<li><a href="#run-{index}">{html.escape(str(folder))}</a></li>')
        sections.append(f'<section id="run-{index}">{_rendered(folder)}</section>')
    page = [_HEAD, "<ol>", *entries, "</ol>", *sections, "</body></html>\n"]
    with writing(out.name, out.parent):
        write_atomically(out, "\n".join(page).encode())


def _rendered(folder: Path) -> str:
    from markdown_it import MarkdownIt

    def image(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        data = base64.b64encode(_bytes(folder, unquote(tokens[index].attrs["src"]))).decode()
        alt = html.escape(tokens[index].content)
        return f'<img src="data:image/png;base64,{data}" alt="{alt}">'

    # No markup of the page is kept (html), so that the only addresses are those of its links.
    page = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    page.add_render_rule("image", image)
    return page.render(_bytes(folder, PAGE).decode(errors="replace"))


def _bytes(folder: Path, name: str) -> bytes:
    """A file of the folder itself: a name, or a link, that leads out of it is refused."""
    path = folder / name
    try:
        if path.resolve().parent != folder.resolve():
            raise OSError("it is not in the folder")
        check_regular(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{name} cannot be read in {folder} ({error}); expected the run folder of a finished "
            "command. Give that command again to write it anew, or leave the folder out."
        ) from error
