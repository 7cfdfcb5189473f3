import pathlib

import numpy as np
import pytest

from edl_jax.checked import MAX_SEED, Seed, check
from edl_jax.errors import ConfigError
from edl_jax.runs.storage import user_path


def test_user_path_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs") == tmp_path / "runs"
    assert user_path(pathlib.Path("runs")) == pathlib.Path("runs")


@pytest.mark.parametrize(
    "path",
    [
        *("", 3, None, b"runs", "~nobody-of-that-name/x", "a\0b", "a\ud800"),
        *("gs://b/x", pathlib.Path("s3://b/x")),
    ],
)
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigError, match="the path is"):
        user_path(path)


@pytest.mark.parametrize("seed", [0, MAX_SEED, np.int64(3)])
def test_a_seed_that_a_key_keeps_whole_is_taken(seed):
    assert check("seed", seed, Seed) == int(seed)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, True, 1.0, "1", None])
def test_a_seed_that_would_wrap_is_refused(seed):
    with pytest.raises(ConfigError, match=r"seed is .*expected a whole number, at least 0"):
        check("seed", seed, Seed)
