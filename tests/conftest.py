"""Shared settings of the tests."""

import os
import shutil
import tempfile

import hypothesis
import jax

# Most of the time goes into compiling the same few programs: one cache for all workers of a run,
# and for the processes that tests start.
_IS_FIRST = "EDL_JAX_TEST_CACHE" not in os.environ
if _IS_FIRST:
    os.environ["EDL_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="edl-jax-tests-")
_CACHE = os.environ["EDL_JAX_TEST_CACHE"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Compilation makes single examples slow, and a failure in CI must be one that can be repeated.
hypothesis.settings.register_profile(
    "edl", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("edl")


def pytest_sessionfinish():
    if _IS_FIRST:
        shutil.rmtree(_CACHE, ignore_errors=True)
