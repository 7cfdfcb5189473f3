"""Shared settings of the tests."""

import os
import tempfile

import hypothesis
import jax

# Most of the time goes into compiling the same few programs: one cache for all workers of a run,
# and for the processes that tests start.
_RUN = os.environ.setdefault("PYTEST_XDIST_TESTRUNUID", f"alone-{os.getpid()}")
_CACHE = os.path.join(tempfile.gettempdir(), f"edl-jax-tests-{_RUN}")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Compilation makes single examples slow, and a failure in CI must be one that can be repeated.
hypothesis.settings.register_profile(
    "edl", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("edl")
