"""Run folders' own pages gathered into one HTML page that needs nothing else.

A run folder is data, perhaps of others: no markup of its pages is kept, their figures are embedded
as images, in which a browser runs nothing, and no file is read that lies outside of it.
"""

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.folder import writing
from edl_jax.runs.storage import check_regular, user_path, write_atomically
from edl_jax.studies.figures import PAGE, check_libraries

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 0 1rem; }}
section {{ border-top: 2px solid #888; margin-top: 2rem; overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ border-bottom: 1px solid #bbb; padding: 0.25rem 0.6rem; }}
img {{ max-width: 100%; height: auto; }}
</style></head><body>
"""


def write_report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write one page about run folders, whole or not at all.

    Args:
      runs: run folders with a README.md, as every finished command leaves it, in the order in which
        they are shown. Of one that holds such folders, as a demo's does, these are shown.
      out: the HTML file.

    Raises:
      ConfigError: if there are no runs, or one of the paths is none.
      RunFolderError: naming the folder that is missing, unfinished or damaged, and what was
        expected; or if the page cannot be written.
    """
    if not runs:
        raise ConfigError("runs is empty; expected one or more run folders.")
    check_libraries("markdown_it")
    out = user_path(out)
    folders = [folder for run in runs for folder in _runs_in(user_path(run))]
    names = [html.escape(folder.resolve().name) for folder in folders]
    entries = [f'<li><a href="#run-{i}">{name}</a></li>' for i, name in enumerate(names)]
    sections = [
        f'<section id="run-{i}">{_rendered(folder)}<p>{html.escape(str(folder))}</p></section>'
        for i, folder in enumerate(folders)
    ]
    title = names[0] if len(names) == 1 else f"Report on {len(names)} runs"
    body = [
        _HEAD.format(title=title),
        f"<ol>{''.join(entries)}</ol>",
        *sections,
        "</body></html>\n",
    ]
    with writing(out.name, out.parent):
        write_atomically(out, "\n".join(body).encode())


def _runs_in(folder: Path) -> list[Path]:
    try:
        found = [x for x in (folder, *sorted(folder.iterdir())) if (x / PAGE).exists()]
        why = f"holds no {PAGE}"
    except OSError as error:
        found, why = [], f"cannot be read ({error.strerror})"
    if not found:
        raise RunFolderError(
            f"{folder} {why}; expected the run folder of a finished command. Give that command "
            "again to finish it, or leave the folder out."
        )
    return found[:1] if found[0] == folder else found


def _rendered(folder: Path) -> str:
    from markdown_it import MarkdownIt

    def image(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        name = unquote(tokens[index].attrs["src"])
        data = base64.b64encode(_bytes(folder, name)).decode()
        return (
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(tokens[index].content)}">'
        )

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
            f"{folder} is damaged: {name} cannot be read ({error}). Give the run's command again "
            "to write it anew, or leave the folder out."
        ) from error
