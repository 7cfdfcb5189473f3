"""Shared settings of the tests."""

import os
import tempfile
import time

import hypothesis
import jax
import pytest

from edl_jax.runs import compile_cache
from edl_jax.runs.storage import user_cache

DAYS_KEPT = 14  # so long is a compiled program kept
# So many programs at most may the quick tests compile, all workers together: compiling is most of
# their time. What the cache has counts too, so that the number does not depend on earlier sessions.
MOST_PROGRAMS = 4_800


def kept_programs() -> str | None:
    """A folder for compiled programs that outlives the session, or None where there can be none."""
    folder = user_cache()
    if folder is None:
        return None
    folder = folder / "tests" / compile_cache._kind()
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for entry in folder.iterdir():
            if entry.stat().st_mtime < time.time() - DAYS_KEPT * 86_400:
                entry.unlink(missing_ok=True)
    except OSError:
        return None
    return str(folder)


# All workers, and the processes that tests start, share these settings.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault("EDL_JAX_TEST_CACHE", kept_programs() or "")
if _CACHE := os.environ["EDL_JAX_TEST_CACHE"]:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", _CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_num_cpu_devices", 2)  # processes that tests start have one
# XLA ends the process where one device waits 40 seconds for the other, as it may on a busy machine.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

# Compilation makes single examples slow, and a failure in CI must be one that can be repeated.
hypothesis.settings.register_profile(
    "edl", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("edl")

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
    "test_ablate",
    "test_training",
    "test_cli",
    "test_sharding",
    "test_baselines",
]


class Programs:
    """How many programs this process, or all workers of it, had compiled."""

    count = 0

    def heard(self, event: str, seconds: float, **_: object) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


_PROGRAMS = Programs()
jax.monitoring.register_event_duration_secs_listener(_PROGRAMS.heard)


def is_quick(config: pytest.Config) -> bool:
    return config.option.markexpr == "not slow"


def pytest_configure(config):
    """One level of optimization for the session: the users' own but for the quick tests."""
    if is_quick(config):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items):
    rank = {name: index for index, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Called where xdist is used, for each worker that ends."""
    _PROGRAMS.count += getattr(node, "workeroutput", {}).get("programs", 0)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["programs"] = _PROGRAMS.count
    elif is_quick(session.config) and _PROGRAMS.count > MOST_PROGRAMS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.line(f"{_PROGRAMS.count} programs compiled")
    if is_quick(config) and _PROGRAMS.count > MOST_PROGRAMS:
        terminalreporter.line(f"FAILED: the quick tests may compile {MOST_PROGRAMS}", red=True)


# What these import starts JAX's backend, for which the settings above must be there.
@pytest.fixture(scope="session")
def tiny_pretraining(tmp_path_factory):
    """The run folder of a tiny pretraining and its result: copy the folder to change it."""
    from edl_jax import pretrain
    from tests.test_evolution import TINY

    run_dir = tmp_path_factory.mktemp("tiny pretraining") / "run"
    return run_dir, pretrain(TINY, run_dir=run_dir)


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory):
    """The run folder of a tiny training and its result: copy the folder to change it."""
    from edl_jax import train
    from tests.test_train_runs import CONFIG

    run_dir = tmp_path_factory.mktemp("tiny training") / "run"
    return run_dir, train(CONFIG, run_dir=run_dir)
