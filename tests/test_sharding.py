"""A population divided among 8 devices of one process: forced CPU devices, in its own process."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from edl_jax.errors import ConfigError
from edl_jax.evolution.run import check_share

ROOT = Path(__file__).parents[1]
SCRIPT = """
import dataclasses
import jax, numpy as np
from edl_jax import StrategyConfig, pretrain
from edl_jax.runs.devices import device_mesh
from edl_jax.evolution.run import AXIS
from tests.test_evolution import TINY, evolution_of

assert jax.device_count() == 8
config = dataclasses.replace(
    TINY, class_counts=(3, 5), population_size=32, strategy=StrategyConfig({strategy!r})
)
one, eight, again = pretrain(config, devices=jax.devices()[:1]), pretrain(config), pretrain(config)
for a, b in zip(jax.tree.leaves(one.loss), jax.tree.leaves(eight.loss), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
for a, b in zip(jax.tree.leaves(again.loss), jax.tree.leaves(eight.loss), strict=True):
    np.testing.assert_array_equal(a, b)  # same key, same devices: same bits
for name in one.history:
    np.testing.assert_allclose(one.history[name], eight.history[name], rtol=1e-4)

mesh = device_mesh(AXIS)
evolution = evolution_of(config, mesh=mesh)
arguments = evolution.init(jax.random.key(0)), np.int32(2)
# Fitness is all that crosses between devices: 32 float32.
lowered = evolution._advance.lower(*arguments).as_text()
crossing = [x for x in lowered.splitlines() if "stablehlo.all_" in x]
assert len(crossing) == 1 and crossing[0].endswith("-> tensor<32xf32>"), crossing
for platform in {platforms!r}:
    exported = jax.export.export(evolution._advance, platforms=[platform])(*arguments)
    assert exported.nr_devices == 8
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "platforms"), [("ChaoticES", ("cuda", "tpu")), ("ChaoticSNES", ())]
)
def test_eight_devices_reach_what_one_reaches_up_to_rounding(strategy, platforms, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    command = [sys.executable, "-W", "error::DeprecationWarning:edl_jax", "-c"]
    result = subprocess.run(
        [*command, SCRIPT.format(strategy=strategy, platforms=platforms)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal"


def test_a_population_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"250, which 8 devices.*such as 256 or 248"):
        check_share(250, 8)
    with pytest.raises(ConfigError, match=r"4, which 8 devices.*such as 8\."):
        check_share(4, 8)
    check_share(250, 1)
    assert jax.device_count() < 8
