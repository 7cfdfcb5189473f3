"""Run folders gathered into one HTML page that needs nothing else: no network, no scripts.

A run folder is data, perhaps of others: its text is escaped, its figures are embedded as images, in
which a browser runs nothing, and no file is read that lies outside of it.
"""

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.folder import writing
from edl_jax.runs.storage import check_regular, user_path, write_atomically
from edl_jax.studies import report_page as page
from edl_jax.studies.results import STUDY

_MAX_SVG = 1_000_000  # bytes; above, the PNG is smaller
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
_EXPECTED = (
    f"expected {STUDY} of a finished study, or results.json of a finished pretrain or train. Give "
    "that run's command again to finish it, or leave the folder out"
)


def write_report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write one page about run folders, whole or not at all.

    Args:
      runs: folders of finished studies (with `study.json`), or of finished trainings and
        pretrainings, in the order in which they are shown. Of one that holds such folders, as a
        demo's does, these are shown.
      out: the HTML file.

    Raises:
      ConfigError: if there are no runs, or one of the paths is none.
      RunFolderError: naming the folder that is missing, unfinished or damaged, and what was
        expected; or if the page cannot be written.
    """
    if not runs:
        raise ConfigError("runs is empty; expected one or more run folders.")
    out = user_path(out)
    folders = [folder for run in runs for folder in _runs_in(user_path(run))]
    sections = [_section(folder, f"run-{index}") for index, folder in enumerate(folders, start=1)]
    with writing(out.name, out.parent):
        # Half a surrogate pair, which JSON may hold, has no UTF-8.
        write_atomically(out, page.whole(sections).encode(errors="xmlcharrefreplace"))


def parse_table(markdown: str) -> tuple[list[bool], list[list[str]]]:
    """A table that `Table.markdown` wrote.

    Returns:
      For each column whether it is set to the right; and the rows of cells, the headings first.

    Raises:
      ValueError: if it is none.
    """
    lines = [line.strip() for line in markdown.strip().split("\n")]
    if len(lines) < 2 or not all(line.startswith("|") and line.endswith("|") for line in lines):
        raise ValueError("expected a Markdown table of at least a head and a rule")
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line[1:-1])]
        for line in lines
    ]
    rule = rows.pop(1)
    if any(len(row) != len(rule) for row in rows) or not all(map(re.compile("-+:?$").match, rule)):
        raise ValueError("expected a Markdown table whose lines have equally many cells")
    return [mark.endswith(":") for mark in rule], rows


def _runs_in(folder: Path) -> list[Path]:
    try:
        if _is_run(folder):
            return [folder]
        found = sorted(filter(_is_run, folder.iterdir()))
        why = "holds no finished run"
    except (FileNotFoundError, NotADirectoryError):
        found, why = [], "is no folder"
    except OSError as error:  # not allowed, or a name that is too long
        found, why = [], f"cannot be read ({error.strerror})"
    if not found:
        raise RunFolderError(f"{folder} {why}: {_EXPECTED}.")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / STUDY).exists() or (folder / "results.json").exists()


def _section(folder: Path, anchor: str) -> page.Section:
    is_study = (folder / STUDY).exists()
    environment = _object(folder, "environment.json")
    config = _object(folder, "config.json")
    kind = next(iter(config), "run")
    title, parts, entries = _study(folder, anchor) if is_study else _plain(folder, anchor, kind)
    parts += [
        "<h3>Environment</h3>",
        page.definitions(environment),
        "<details><summary>Configuration</summary>",
        f"<pre>{page.escape(json.dumps(config, indent=2, ensure_ascii=False))}</pre></details>",
        f'<p class="path">Run folder: {page.escape(str(folder))}</p>',
    ]
    return page.Section(title, "\n".join(parts), entries)


def _study(folder: Path, anchor: str) -> tuple[str, list[str], list[tuple[str, str]]]:
    """Title, HTML and entries of a folder that `StudyResults.write` wrote."""
    index = _object(folder, STUDY)
    title, finding = _text(folder, index, "title"), _text(folder, index, "finding")
    title = f"{title} ({folder.resolve().name})"  # two of the same study are told apart
    protocol = _listed(folder, index, "protocol")
    parts = [f"<p>{page.prose(part)}</p>" for part in finding.split("\n\n")]
    entries = []
    for number, table in enumerate(_listed(folder, index, "tables"), start=1):
        place, caption = f"{anchor}-table-{number}", _text(folder, table, "title")
        try:
            markdown = _bytes(folder, _text(folder, table, "name") + ".md").decode()
            parts.append(page.table(place, caption, *parse_table(markdown)))
        except ValueError as error:
            raise _damaged(folder, f"{table['name']}.md is no table ({error})") from error
        entries.append((place, caption))
    for number, figure in enumerate(_listed(folder, index, "figures"), start=1):
        place, name = f"{anchor}-figure-{number}", _text(folder, figure, "name")
        caption = _text(folder, figure, "caption")
        parts.append(page.figure(place, caption, _image(folder, name)))
        entries.append((place, f"Figure: {name.replace('_', ' ')}"))
    sentences = [page.prose(_string(folder, sentence, "protocol")) for sentence in protocol]
    items = "".join(f"<li>{sentence}</li>" for sentence in sentences)
    parts.append(f"<h3>Protocol</h3>\n<ul>{items}</ul>")
    return title, parts, entries


def _plain(folder: Path, anchor: str, kind: str) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The same of any other run, in short: its results and its images."""
    # The overall values: what is measured by class count and regime stays in the folder.
    results = {k: v for k, v in _object(folder, "results.json").items() if not set(k) & set("/:")}
    parts, entries = ["<h3>Results</h3>", page.definitions(results)], []
    for number, path in enumerate(sorted(folder.glob("*.png")), start=1):
        place, name = f"{anchor}-figure-{number}", path.stem.replace("_", " ")
        parts.append(page.figure(place, name, _data(folder, path.name)))
        entries.append((place, f"Figure: {name}"))
    return f"{kind}: {folder.resolve().name}", parts, entries


def _image(folder: Path, name: str) -> str:
    is_small = len(_bytes(folder, f"{name}.svg")) <= _MAX_SVG
    return _data(folder, f"{name}.svg" if is_small else f"{name}.png")


def _data(folder: Path, name: str) -> str:
    encoded = base64.b64encode(_bytes(folder, name)).decode()
    return f"data:{_TYPES[Path(name).suffix]};base64,{encoded}"


def _bytes(folder: Path, name: str) -> bytes:
    """A file of the folder itself: a name, or a link, that leads out of it is refused."""
    path = folder / name
    if Path(name).name != name or path.resolve().parent != folder.resolve():
        raise _damaged(folder, f"it names {name!r}; expected a file in the folder")
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{name} cannot be read ({error})") from error


def _object(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_bytes(folder, name))
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{name} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(folder, f"{name} holds a {type(value).__name__}; expected an object")
    return value


def _text(folder: Path, values: Any, key: str) -> str:
    return _string(folder, values.get(key) if isinstance(values, dict) else None, key)


def _string(folder: Path, value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _damaged(folder, f"{key} in {STUDY} is {value!r}; expected text")
    return value


def _listed(folder: Path, values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key)
    if not isinstance(value, list):
        raise _damaged(folder, f"{key} in {STUDY} is {value!r}; expected a list")
    return value


def _damaged(folder: Path, what: str) -> RunFolderError:
    return RunFolderError(
        f"{folder} is damaged: {what}. Give the run's command again to write it anew, or leave the "
        "folder out."
    )
