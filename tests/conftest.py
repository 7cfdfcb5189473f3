"""Shared settings of the tests."""

import os
import shutil
import tempfile

import hypothesis
import jax
import pytest

# Most of the time goes into compiling the same few programs: one cache for all workers of a run,
# and for the processes that tests start.
_IS_FIRST = "EDL_JAX_TEST_CACHE" not in os.environ
if _IS_FIRST:
    os.environ["EDL_JAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="edl-jax-tests-")
_CACHE = os.environ["EDL_JAX_TEST_CACHE"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# In these files a program must be as fast, or as exactly rounded, as it is for users. In the others
# runs are compared with one another, or behaviour is watched: there compiling took most of the
# time, so that few optimisations are asked for.
OPTIMIZED = {
    "test_adaptive_barron",
    "test_against_torch",
    "test_augmentation",
    "test_baseline_values",
    "test_baselines",
    "test_convolution",
    "test_documentation",  # shares the default pretraining's programs with test_pretraining
    "test_evolved_loss",
    "test_export",
    "test_layers",
    "test_mixing",
    "test_mutations",
    "test_pairs",
    "test_pretraining",
    "test_ranking",
    "test_torch_loss",
    "test_training_metrics",
}

# The files that take longest, longest first: a worker that took one of them last would keep the
# others waiting.
_LONGEST = [
    "test_switches",
    "test_mutations",
    "test_pretraining",
    "test_processes",
    "test_documentation",
    "test_tasks",
    "test_strategies",
    "test_network",
    "test_examples",
    "test_benchmarks",
    "test_resume",
    "test_evolved_loss",
    "test_optimizers",
    "test_train_devices",
    "test_evolution",
    "test_models",
    "test_train_runs",
    "test_ablation",
    "test_training",
    "test_cli",
    "test_sharding",
    "test_baselines",
]

# Compilation makes single examples slow, and a failure in CI must be one that can be repeated.
hypothesis.settings.register_profile(
    "edl", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("edl")


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """Compile with few optimisations, here and in processes started, but in the files above."""
    if request.path.stem in OPTIMIZED:
        yield
        return
    # What an earlier file compiled, such as a mean, is not the same to the bit.
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def pytest_collection_modifyitems(items):
    rank = {name: index for index, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_sessionfinish():
    if _IS_FIRST:
        shutil.rmtree(_CACHE, ignore_errors=True)
