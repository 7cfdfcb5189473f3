"""Compiled programs are kept where nobody else can put one."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from edl_jax.data.arrays import LazyArray, read_rows
from edl_jax.runs import compile_cache
from edl_jax.runs.compile_cache import keep_compiled

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, jax
from pathlib import Path
from edl_jax.runs.compile_cache import keep_compiled

def entry():
    jax.clear_caches()
    assert jax.jit(abs)(-1) == 1
    (found,) = Path(jax.config.jax_compilation_cache_dir).glob("jit_abs-*-cache")
    return found

keep_compiled()
path = entry()
whole = path.read_bytes()
half, flipped = whole[: len(whole) // 2], whole[:9] + bytes([whole[9] ^ 255]) + whole[10:]
for damaged in (b"", half, flipped):
    path.write_bytes(damaged)
    assert entry().read_bytes() != damaged, len(damaged)
path.unlink()
path.mkdir()  # which is left alone
entry()
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder; JAX is not told of one, and its settings are put back."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(warnings, "filters", warnings.filters[:])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    yield tmp_path / "caches" / "edl_jax"
    jax.config.update("jax_compilation_cache_dir", before)


def kept():
    return jax.config.jax_compilation_cache_dir


def test_programs_are_kept_in_a_private_folder_of_the_user(cache, caplog):
    keep_compiled()
    assert Path(kept()).parent == cache / "compiled"
    assert jax.__version__ in Path(kept()).name
    for folder in (cache / "compiled", Path(kept())):
        assert folder.stat().st_mode & 0o777 == 0o700
    keep_compiled()  # where JAX was told already
    assert not caplog.text


def test_where_jax_was_told_to_keep_them_is_left_alone(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled()
    assert kept() == str(tmp_path)
    assert not cache.exists()


def make(folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)


UNSAFE = {
    "others may read it": lambda cache: make(cache / "compiled", 0o755),
    "others may write to it": lambda cache: make(cache / "compiled", 0o777),
    "others may write above it": lambda cache: make(cache, 0o777),
    "it is a link": lambda cache: (
        make(cache.parent / "other", 0o700),
        cache.mkdir(),
        (cache / "compiled").symlink_to(cache.parent / "other"),
    ),
    "it is a file": lambda cache: (cache.mkdir(parents=True), (cache / "compiled").touch()),
    "a link above it": lambda cache: (
        make(cache.parent / "other", 0o700),
        cache.symlink_to(cache.parent / "other"),
    ),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_an_unsafe_folder_is_not_used_and_it_is_said_once(cache, what, caplog):
    UNSAFE[what](cache)
    with caplog.at_level(logging.WARNING):
        keep_compiled()
    assert kept() is None
    (record,) = caplog.records
    assert "Compiled programs are not kept" in record.getMessage()


def test_a_folder_of_another_user_is_not_used(cache, caplog, monkeypatch):
    make(cache / "compiled", 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    keep_compiled()
    assert kept() is None
    assert "belongs to user" in caplog.text


@pytest.mark.slow
def test_an_entry_that_cannot_be_read_is_replaced_in_silence(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not [x for x in result.stderr.splitlines() if "Error reading" in x]


def test_other_warnings_are_shown(cache, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *arguments: shown.append(arguments))
    compile_cache._replace_unreadable(cache)
    warnings.showwarning(UserWarning("other"), UserWarning, "file", 1)
    assert len(shown) == 1


def test_a_folder_that_the_cache_of_images_made_is_private_enough(cache):
    before = os.umask(0o002)
    try:
        path = cache / "digits" / "images.npy"
        one = LazyArray(np.arange(1), (), np.dtype(bool), np.ones_like, "digest", path)
        read_rows(one, np.arange(1))
    finally:
        os.umask(before)
    keep_compiled()
    assert Path(kept()).parent == cache / "compiled"
