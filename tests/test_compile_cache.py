"""Compiled programs are kept where nobody else can put one."""

import logging
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from edl_jax.data.arrays import LazyArray, read_rows
from edl_jax.runs.compile_cache import keep_compiled


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder; JAX is not told of one, and its settings are put back."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
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
