"""The README and the documentation: Python blocks run as written, commands are ones that exist."""

import contextlib
import functools
import re
import runpy
import shlex
from pathlib import Path
from unittest import mock

import pytest

import edl_jax
from edl_jax import DATASETS, LOSSES, MARGINS, MODELS, MUTATIONS, SEVERITIES, STRATEGIES, cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    str(page.relative_to(ROOT)): re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for page in PAGES
}
COMMANDS = sorted(
    {
        line.strip()
        for page in PAGES
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("edl ")
    }
)


@pytest.fixture(autouse=True)
def registered():
    """What a block registers is gone after it."""
    with contextlib.ExitStack() as stack:
        for registry in (DATASETS, LOSSES, MARGINS, MODELS, MUTATIONS, SEVERITIES, STRATEGIES):
            stack.enter_context(mock.patch.dict(registry))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "index"),
    [(page, index) for page, blocks in BLOCKS.items() for index in range(len(blocks))],
)
def test_block_runs(page, index, tmp_path, monkeypatch):
    """Each alone, but for the drop-in page, whose first block has the data of all."""
    monkeypatch.chdir(tmp_path)
    blocks = [BLOCKS[page][index]]
    if page == "docs/drop_in.md" and index:
        blocks.insert(0, BLOCKS[page][0])
    names = {}
    for block in blocks:
        exec(compile(block, f"{page}, block {index}", "exec"), names)


def test_there_are_blocks():
    assert {page: len(blocks) for page, blocks in BLOCKS.items() if blocks} == {
        "README.md": 2,
        "docs/drop_in.md": 5,
        "docs/export.md": 1,
        "docs/extend.md": 5,
        "docs/learned_losses.md": 2,
        "docs/studies.md": 1,
        "docs/train.md": 2,
    }


def test_there_are_commands():
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command, tmp_path, monkeypatch):
    """All of it but the work itself."""
    _, name, *arguments = shlex.split(command, comments=True)
    config_type, run = cli._COMMANDS[name]
    if config_type is None:
        return
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    asked = []
    instead = functools.wraps(run)(lambda config, **_: asked.append(config))
    monkeypatch.setitem(cli._COMMANDS, name, (config_type, instead))
    assert cli.main([name, *arguments]) == 0
    assert [type(config) for config in asked] == [config_type]


def test_every_public_name_is_used_where_types_are_checked_strictly():
    text = (ROOT / "tests" / "public_types.py").read_text()
    assert [name for name in edl_jax.__all__ if f"edl_jax.{name}" not in text] == []
    assert (Path(edl_jax.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_tables_of_recipes_are_what_their_script_prints():
    folder = ROOT / "results" / "recipes"
    page, tables = (folder / "README.md").read_text(), runpy.run_path(str(folder / "tables.py"))
    for table, number in (("of_edl", 9), ("of_other_rate", 7)):
        rows = tables[table]()
        assert len(rows) == number
        assert "\n".join(rows) in page
