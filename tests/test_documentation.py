"""Every Python block of the README and of the documentation runs as written."""

import re
from pathlib import Path

import pytest

from edl_jax import MARGINS, MUTATIONS, SEVERITIES, STRATEGIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    str(page.relative_to(ROOT)): re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for page in PAGES
}


@pytest.fixture(autouse=True)
def registered():
    """What a block registers is gone after it."""
    registries = (MARGINS, MUTATIONS, SEVERITIES, STRATEGIES)
    before = [dict(registry._parts) for registry in registries]
    yield
    for registry, parts in zip(registries, before, strict=True):
        registry._parts = parts


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_blocks_run(page, tmp_path, monkeypatch):
    """One after the other, as a reader would: a later one may use an earlier one's names."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for index, block in enumerate(BLOCKS[page]):
        exec(compile(block, f"{page}, block {index}", "exec"), names)


def test_there_are_blocks():
    assert sum(map(len, BLOCKS.values())) >= 10
