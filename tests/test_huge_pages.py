"""The command restarts itself with huge pages where that helps, and only there."""

import os
import subprocess
import sys

import pytest

from edl_jax.runs import huge_pages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

SHOW = """
import os, sys
from edl_jax.runs.huge_pages import restart_with_huge_pages
print(os.getpid(), flush=True)
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], "jax" in sys.modules)
"""


@pytest.fixture
def kernel(tmp_path):
    """A kernel that gives huge pages on request."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_wanted_where_the_kernel_gives_them_on_request(kernel):
    assert huge_pages.wanted({}, kernel)
    kernel.write_text("[always] madvise never\n")
    assert not huge_pages.wanted({}, kernel)
    kernel.write_text("always madvise [never]\n")
    assert not huge_pages.wanted({}, kernel)
    assert not huge_pages.wanted({}, kernel.with_name("missing"))


@pytest.mark.parametrize("setting", ["", "glibc.malloc.tcache_count=0"])
def test_what_the_user_set_stays(kernel, setting):
    assert not huge_pages.wanted({"GLIBC_TUNABLES": setting}, kernel)


def test_restart_keeps_process_and_arguments_and_happens_once():
    environment = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE}
    command = [sys.executable, "-c", SHOW, "one", "two words"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *pids, last = found.stdout.splitlines()
    restarted = huge_pages.wanted(environment)
    assert len(pids) == 1 + restarted
    assert len(set(pids)) == 1
    assert last == f"{huge_pages.SETTING if restarted else None} one two words False"


def test_a_restart_that_fails_is_done_without(monkeypatch, kernel):
    monkeypatch.setattr(huge_pages, "wanted", lambda environment: True)
    monkeypatch.setattr(huge_pages.sys, "executable", "/missing/python")
    before = dict(os.environ)
    huge_pages.restart_with_huge_pages()
    assert dict(os.environ) == before
