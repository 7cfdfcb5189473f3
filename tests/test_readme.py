"""Every Python block of the README runs as written."""

import re
from pathlib import Path

import pytest

from edl_jax import MARGINS, MUTATIONS, SEVERITIES, STRATEGIES

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def registered():
    """What a block registers is gone after it."""
    registries = (MARGINS, MUTATIONS, SEVERITIES, STRATEGIES)
    before = [dict(registry._parts) for registry in registries]
    yield
    for registry, parts in zip(registries, before, strict=True):
        registry._parts = parts


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_runs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[index], f"README block {index}", "exec"), {})


def test_there_are_blocks():
    assert len(BLOCKS) == 4
