"""The same work under every switch of JAX that users turn on: it works, and gives the same."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.switches import WORKLOADS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SWITCHES = {
    "x64": {"JAX_ENABLE_X64": "1"},
    "rank promotion": {"JAX_NUMPY_RANK_PROMOTION": "raise"},
    "NaN": {"JAX_DEBUG_NANS": "1"},
    "two devices": {"JAX_NUM_CPU_DEVICES": "2"},
    "strict dtypes": {"JAX_NUMPY_DTYPE_PROMOTION": "strict"},
    "infinities": {"JAX_DEBUG_INFS": "1"},
}
# Of these switches, what has shown to hang on them; evosax's state holds infinities by design.
FEW = {
    "strict dtypes": (
        *("the loss ldam", "the loss edl", "tasks", "train"),
        *("shapes of a generation with every term", "pretrain with ChaoticES"),
    ),
    "infinities": ("the loss edl", "the loss edl-paper", "ranking", "train"),
}
# evosax's own, whose features for a transformer mix float32 and float64.
NOT_OURS = ("x64", "shapes of EvoTF_ES")
# Where nothing is run, only what looks at programs can fail.
CASES = [
    (switch, work)
    for switch in SWITCHES
    for work in WORKLOADS
    if (switch, work) != NOT_OURS
    and work in FEW.get(switch, WORKLOADS)
    and (switch in ("x64", "rank promotion", *FEW) or not work.startswith("shapes"))
]
EXACT = ("pairs", "the mutation", "shapes")  # draws, whatever is switched on


@functools.cache
def results(switch):
    """What the workloads gave in a process of their own."""
    works = [work for other, work in CASES if other == switch]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        subprocess.run(
            [sys.executable, "-m", "tests.switches", str(path), *works],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **SWITCHES.get(switch, {})},
            check=True,
        )
        return json.loads(path.read_text())


@pytest.mark.parametrize(("switch", "work"), CASES)
def test_works_and_gives_the_same_under_every_switch(switch, work):
    expected, found = results(None)[work], results(switch)[work]
    assert "error" not in expected, expected["error"]
    assert "error" not in found, found["error"]
    for (dtype, value), (reference_dtype, reference) in zip(
        found["arrays"], expected["arrays"], strict=True
    ):
        assert dtype == reference_dtype
        tolerance = 0 if work.startswith(EXACT) else 1e-4
        np.testing.assert_allclose(value, reference, rtol=tolerance, atol=tolerance / 100)
